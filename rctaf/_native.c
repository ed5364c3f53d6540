/* sigma^(n)(x), or grad * sigma^(n)(x), in single precision and one pass over memory. Tensors hold floats or, where
 * half is set, bfloat16: the upper halves of floats, rounded once at the end. The argument x may be a sum of two
 * tensors, and each of them the output of a batch norm that is computed again from its input.
 *
 * The formula is that of family.py; its polynomials arrive as an argument, so that one routine serves
 * every order and every derivative. What a network spends its time in, orders 0 to 2 forward and backward, is one
 * expression per element; everything else goes term by term over a block whose u, q, c stay in the nearest cache.
 */
#if defined(__AVX512F__) && defined(__GNUC__) && __GNUC__ >= 9 && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512") /* by itself GCC takes half of the register */
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline)) /* calls would keep loops from being vectorized */
#else
#define INLINE static inline
#endif

/* x itself, or, where scale is given, scale[c] x + shift[c] in channel c */
struct summand {
    const void *x;
    const float *scale, *shift;
};

/* a float as its bits and back */
static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* exp(-a) for a >= 0, within 1e-7 relative up to 87, 0 above: 2^k times a polynomial on [-ln2/2, ln2/2].
 * With 1.5 2^23 + 127 added, the last bits of k are the exponent of 2^k. */
static inline float exp_minus(float a) {
    a = a > 87.f ? 88.f : a; /* there 2^k is 0; NaN stays NaN */
    float k = rintf(a * -1.44269504f), shifted = k + (12582912.f + 127.f);
    float r = fmaf(k, 1.42860677e-6f, fmaf(k, 0.693145752f, a)); /* ln 2 in two parts: the first product is exact */
    float p = 1.f - r * (1.f - r * (0.5f - r * (0.166666672f - r * (0.0416666567f - r * (0.00833343342f - r * 0.00138883083f)))));
    return p * float_of(bits_of(shifted) << 23);
}

/* 1 - t for t = exp(-a), a >= 0, without the cancellation of the difference at small a */
static inline float one_minus(float t, float a) {
    float small = a * (1.f - a * (1.f / 2 - a * (1.f / 6 - a * (1.f / 24 - a * (1.f / 120 - a * (1.f / 720 - a * (1.f / 5040)))))));
    return a > 0.5f ? 1.f - t : small;
}

/* n elements as floats: where they are, or, from bfloat16, in the buffer */
static inline const float *load(float *buffer, const void *from, int64_t start, int n, int half) {
    if (!half) return (const float *)from + start;
    for (int i = 0; i < n; i++) buffer[i] = float_of((uint32_t)((const uint16_t *)from)[start + i] << 16);
    return buffer;
}

/* a float to bfloat16, to the nearest, ties to even; NaN stays NaN */
static inline uint16_t half_of(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* floats rounded as if they had been stored as bfloat16 */
static inline void as_half(float *x, int n) {
    for (int i = 0; i < n; i++) x[i] = float_of((uint32_t)half_of(x[i]) << 16);
}

/* n elements of one summand; where it is a batch norm's output, with the rounding of that output */
static inline const float *value(float *buffer, const struct summand *term, int64_t channels, int64_t inner,
                                 int64_t start, int n, int half) {
    const float *x = load(buffer, term->x, start, n, half);
    if (!term->scale) return x;
    int64_t c = start / inner % channels, left = inner - start % inner;
    for (int i = 0; i < n;) {
        const float *scale = term->scale + c, *shift = term->shift + c;
        int64_t run = inner == 1 ? channels - c : left;
        if (run > n - i) run = n - i;
        if (inner == 1) {
            for (int j = i; j < i + run; j++) buffer[j] = fmaf(x[j], scale[j - i], shift[j - i]);
            c = 0;
        } else {
            for (int j = i; j < i + run; j++) buffer[j] = fmaf(x[j], *scale, *shift);
            c = c + 1 < channels ? c + 1 : 0;
            left = inner;
        }
        i += run;
    }
    if (half) as_half(buffer, n);
    return buffer;
}

/* the sum of one or two summands */
static inline const float *sum(float *buffer, float *other, const struct summand *terms, int64_t channels,
                               int64_t inner, int64_t start, int n, int half) {
    const float *x = value(buffer, terms, channels, inner, start, n, half);
    if (!terms[1].x) return x;
    const float *y = value(other, terms + 1, channels, inner, start, n, half);
    for (int i = 0; i < n; i++) buffer[i] = x[i] + y[i];
    if (half) as_half(buffer, n);
    return buffer;
}

/* sigma (n = 0) or its slope (n = 1) at x for the orders 0 to 2, in terms of t = exp(-alpha |x|). lowest, highest: the
 * coefficients of these terms, where the order has them. In |u| where that will do, since c u is even: one sign less to
 * choose. */
INLINE float element(float x, float alpha, int order, int n, float lowest, float highest) {
    float v = alpha * x, a = fabsf(v), t = exp_minus(a);
    if (order == 0 && n == 0) { /* log1p(t) = 2 atanh(t / (2 + t)), whose argument is at most 1/3 */
        float z = t / (2.f + t);
        int32_t bits = (int32_t)bits_of(z), least = 0x219392ef; /* 1e-18: its square is no denormal, and the sum 1 */
        float y = float_of((uint32_t)(bits > least ? bits : least)), w = y * y;
        float p = 1.f + w * (1.f / 3 + w * (1.f / 5 + w * (1.f / 7 + w * (1.f / 9 + w * (1.f / 11 + w * (1.f / 13 + w * (1.f / 15)))))));
        return (v > 0.f ? x : 0.f) + 2.f / alpha * z * p;
    }
    float r = 1.f / (1.f + t), p = t * r;
    float s = v >= 0.f ? r : p, q = p * r;
    a = a > 87.f ? 88.f : a; /* q is 0 there; keeps 0 * a at 0 */
    float u = float_of(bits_of(a) | (bits_of(v) & 0x80000000));
    if (n == 1) {
        if (order == 0) return s;
        if (order == 1) return fmaf(q * u, lowest, s);
        float tanh_half = (1.f - t) * (v >= 0.f ? r : 1.f - p); /* -c of u >= 0 */
        return fmaf(q * u, fmaf(-(highest * tanh_half), a, lowest), s);
    }
    return order == 1 ? x * s : fmaf(q * a * a, lowest, x * s);
}

INLINE void each(const float *restrict x, const float *restrict grad, float *restrict out, int count, float alpha,
                 int order, int n, float lowest, float highest) {
    if (grad)
        for (int i = 0; i < count; i++) out[i] = grad[i] * element(x[i], alpha, order, n, lowest, highest);
    else
        for (int i = 0; i < count; i++) out[i] = element(x[i], alpha, order, n, lowest, highest);
}

/* rows[k * width + j]: coefficient of q^j u^(k - first) (times c where n + k is odd), k = first .. order, of the n-th
 * derivative. grad may be NULL, and so may the second of the two terms.
 * Element i in memory belongs to channel i / inner % channels. */
void rctaf_derivative(const struct summand *terms, int64_t channels, int64_t inner, const void *grad, void *out, int half,
                      int64_t size, float alpha, int order, int n, int width, const float *rows, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    int first = n < 2 ? 2 - n : 0; /* below it stand x s for sigma itself and s for its slope */
    int any_odd = order > first || (order == first && (n + first) % 2);
    /* near 0, where c is small, everything else is too; elsewhere c stands beside larger terms */
    int small_c = (n + first) % 2;
    float lowest = first <= order ? rows[first * width] : 0.f, highest = rows[order * width];
#pragma omp parallel for num_threads(threads) if (threads > 1 && size > 32768) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK;
        int count = (int)(size - start < BLOCK ? size - start : BLOCK);
        float x_buffer[BLOCK], grad_buffer[BLOCK], out_buffer[BLOCK];
        float u[BLOCK], s[BLOCK], q[BLOCK], c[BLOCK], term[BLOCK];
        const float *x = sum(x_buffer, term, terms, channels, inner, start, count, half);
        const float *g = grad ? load(grad_buffer, grad, start, count, half) : 0;
        float *total = half ? out_buffer : (float *)out + start;
        if (order <= 2 && n <= 1) {
            switch (2 * order + n) { /* with constants the compiler drops what an order does without */
                case 0: each(x, g, total, count, alpha, 0, 0, lowest, highest); break;
                case 1: each(x, g, total, count, alpha, 0, 1, lowest, highest); break;
                case 2: each(x, g, total, count, alpha, 1, 0, lowest, highest); break;
                case 3: each(x, g, total, count, alpha, 1, 1, lowest, highest); break;
                case 4: each(x, g, total, count, alpha, 2, 0, lowest, highest); break;
                case 5: each(x, g, total, count, alpha, 2, 1, lowest, highest); break;
            }
        } else {
            for (int i = 0; i < count; i++) {
                float v = alpha * x[i], t = exp_minus(fabsf(v)), r = 1.f / (1.f + t), p = t * r;
                u[i] = v < -87.f ? -87.f : (v > 87.f ? 87.f : v); /* q is 0 there; keeps 0 * u^k at 0 */
                s[i] = v >= 0.f ? r : p;
                q[i] = p * r;
                c[i] = t;
            }
            if (any_odd)
                for (int i = 0; i < count; i++) {
                    float r = u[i] >= 0.f ? s[i] : 1.f - s[i];
                    float tanh_half = (small_c ? one_minus(c[i], fabsf(u[i])) : 1.f - c[i]) * r;
                    c[i] = u[i] >= 0.f ? -tanh_half : tanh_half;
                }
            for (int k = order; k >= first; k--) {
                const float *row = rows + k * width;
                int odd = (n + k) % 2;
                if (width > 1) {
                    for (int i = 0; i < count; i++) term[i] = fmaf(row[width - 1], q[i], row[width - 2]);
                    for (int j = width - 3; j >= 0; j--)
                        for (int i = 0; i < count; i++) term[i] = fmaf(term[i], q[i], row[j]);
                }
                for (int i = 0; i < count; i++) {
                    float part = (width > 1 ? term[i] : row[0]) * (odd ? c[i] : 1.f);
                    total[i] = k == order ? part : fmaf(total[i], u[i], part);
                }
            }
            if (n == 0)
                for (int i = 0; i < count; i++)
                    total[i] = (g ? g[i] : 1.f) * fmaf(q[i] * u[i] * u[i], total[i], x[i] * s[i]);
            else if (n == 1)
                for (int i = 0; i < count; i++) total[i] = (g ? g[i] : 1.f) * fmaf(q[i] * u[i], total[i], s[i]);
            else
                for (int i = 0; i < count; i++) total[i] = (g ? g[i] : 1.f) * (q[i] * total[i]);
        }
        if (half)
            for (int i = 0; i < count; i++) ((uint16_t *)out)[start + i] = half_of(total[i]);
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
        float y_buffer[BLOCK], grad_buffer[BLOCK], out_buffer[BLOCK];
        const float *yb = load(y_buffer, y, start, n, half), *gb = load(grad_buffer, grad, start, n, half);
        float *total = half ? out_buffer : (float *)out + start;
        for (int i = 0; i < n; i++) {
            float a = alpha * yb[i];
            total[i] = gb[i] * one_minus(exp_minus(a), a);
        }
        if (half)
            for (int i = 0; i < n; i++) ((uint16_t *)out)[start + i] = half_of(total[i]);
    }
}
