/* sigma^(n)(x), or grad * sigma^(n)(x), in single precision and one pass over memory. Tensors hold floats or, where
 * half is set, bfloat16: the upper halves of floats, rounded once at the end.
 *
 * The formula is that of _kernels.py; its polynomials arrive as an argument, so that one routine serves
 * every order and every derivative. Work goes block by block: a block's u, q, c stay in the nearest cache.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256

/* exp(-a) for 0 <= a <= 87, within 1e-7 relative: 2^k times a polynomial on [-ln2/2, ln2/2] */
static inline float exp_minus(float a) {
    float k = rintf(a * -1.44269504f);
    float r = fmaf(k, -0.693145752f, -a); /* ln 2 in two parts: the first product is exact */
    r = fmaf(k, -1.42860677e-6f, r);
    float p = 1.f + r * (1.f + r * (0.5f + r * (0.166666672f + r * (0.0416666567f + r * (0.00833343342f + r * 0.00138883083f)))));
    uint32_t bits = (uint32_t)((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* 1 - exp(-a), a >= 0, without the cancellation of the difference at small a */
static inline float one_minus_exp(float a) {
    float large = 1.f - exp_minus(a > 87.f ? 87.f : a);
    float small = a * (1.f - a * (1.f / 2 - a * (1.f / 6 - a * (1.f / 24 - a * (1.f / 120 - a * (1.f / 720 - a / 5040))))));
    return a > 0.5f ? large : small;
}

static void load(float *to, const void *from, int64_t start, int n, int half) {
    if (!half)
        memcpy(to, (const float *)from + start, n * sizeof(float));
    else
        for (int i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)((const uint16_t *)from)[start + i] << 16;
            memcpy(to + i, &bits, 4);
        }
}

static void store(void *to, const float *from, int64_t start, int n, int half) {
    if (!half)
        memcpy((float *)to + start, from, n * sizeof(float));
    else
        for (int i = 0; i < n; i++) { /* to the nearest, ties to even; NaN stays NaN */
            uint32_t bits;
            memcpy(&bits, from + i, 4);
            uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            ((uint16_t *)to)[start + i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
        }
}

/* rows[k * width + j]: coefficient of q^j u^(k - first) (times c where odd[k]), k = first .. order.
 * head: 0 none, 1 s, 2 x s, 3 softplus(u)/alpha. grad may be NULL. */
void rctaf_derivative(const void *x, const void *grad, void *out, int half, int64_t size, float alpha, int order,
                      int first, int head, int width, const float *rows, const int *odd, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && size > 32768) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK;
        int n = (int)(size - start < BLOCK ? size - start : BLOCK);
        float xb[BLOCK], u[BLOCK], q[BLOCK], c[BLOCK], lead[BLOCK], total[BLOCK], term[BLOCK];
        load(xb, x, start, n, half);
        for (int i = 0; i < n; i++) {
            float v = alpha * xb[i], a = fabsf(v);
            float t = exp_minus(a > 87.f ? 87.f : a); /* NaN takes neither branch and stays NaN */
            t = a > 87.f ? 0.f : t;
            float r = 1.f / (1.f + t), tanh_half = one_minus_exp(a) * r;
            u[i] = v < -87.f ? -87.f : (v > 87.f ? 87.f : v); /* q is 0 there; keeps 0 * u^k at 0 */
            q[i] = t * r * r;
            c[i] = v >= 0.f ? -tanh_half : tanh_half;
            lead[i] = v >= 0.f ? r : t * r;
            total[i] = 0.f;
        }
        if (head == 0)
            memset(lead, 0, sizeof lead);
        else if (head == 2)
            for (int i = 0; i < n; i++) lead[i] *= xb[i];
        else if (head == 3)
            for (int i = 0; i < n; i++) { /* log1p(t) = 2 atanh(t / (2 + t)), whose argument is at most 1/3 */
                float t = exp_minus(fabsf(u[i])), z = t / (2.f + t), w = z * z;
                float p = 1.f + w * (1.f / 3 + w * (1.f / 5 + w * (1.f / 7 + w * (1.f / 9 + w * (1.f / 11 + w * (1.f / 13 + w / 15))))));
                lead[i] = (u[i] > 0.f ? xb[i] : 0.f) + 2.f * z * p / alpha;
            }
        for (int k = order; k >= first; k--) {
            const float *row = rows + k * width;
            for (int i = 0; i < n; i++) term[i] = row[width - 1];
            for (int j = width - 2; j >= 0; j--)
                for (int i = 0; i < n; i++) term[i] = fmaf(term[i], q[i], row[j]);
            if (odd[k])
                for (int i = 0; i < n; i++) total[i] = fmaf(total[i], u[i], term[i] * c[i]);
            else
                for (int i = 0; i < n; i++) total[i] = fmaf(total[i], u[i], term[i]);
        }
        for (int k = 0; k < first; k++)
            for (int i = 0; i < n; i++) total[i] *= u[i];
        for (int i = 0; i < n; i++) total[i] = fmaf(q[i], total[i], lead[i]);
        if (grad) {
            load(term, grad, start, n, half);
            for (int i = 0; i < n; i++) total[i] *= term[i];
        }
        store(out, total, start, n, half);
    }
}

/* grad * (1 - exp(-alpha y)): the backward pass of order 0 from its output y >= 0 */
void rctaf_softplus_backward(const void *y, const void *grad, void *out, int half, int64_t size, float alpha,
                             int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && size > 32768) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK;
        int n = (int)(size - start < BLOCK ? size - start : BLOCK);
        float yb[BLOCK], total[BLOCK];
        load(yb, y, start, n, half);
        load(total, grad, start, n, half);
        for (int i = 0; i < n; i++) total[i] *= one_minus_exp(alpha * yb[i]);
        store(out, total, start, n, half);
    }
}
