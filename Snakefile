# Schedules the runs of one grid; one host: `make runs GRID=grids/quick.yaml`, a cluster:
#   snakemake --profile profiles/slurm --config grid=grids/paper/figure_3.yaml
# Snakemake must never decide what is done: by file times or checksums, an edited notebook or a fresh
# clone would train everything again. The store decides; only runs without a record enter the graph.
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from rctaf._startup import Unreadable
from rctaf.config import Grid
from rctaf.runs import batch_dir, finished

if "grid" not in config:
    raise SystemExit("which grid? --config grid=grids/quick.yaml")
GRID = Path(workflow.basedir, config["grid"])
try:
    CELLS = Grid.load(GRID).cells()
except Unreadable as error:
    raise SystemExit(str(error)) from None
RANK = {run_id: len(CELLS) - place for place, run_id in enumerate(CELLS)}


workdir: batch_dir()


rule all:
    input:
        [f"ran/{run_id}" for run_id in CELLS if not finished(run_id)],


rule cell:
    output:
        touch("ran/{run_id}"),  # required of a rule, read by nobody: forceall ignores it
    log:
        "logs/{run_id}.log",
    params:
        python=sys.executable,
        label=lambda wildcards: CELLS[wildcards.run_id].label,
    priority:
        lambda wildcards: RANK[wildcards.run_id]  # the order of the file: complete seeds first
    threads: 1
    message:
        "{wildcards.run_id} {params.label}"
    shell:
        "(cd {workflow.basedir:q} && {params.python:q} -m rctaf.runs exec {GRID:q} {wildcards.run_id}) > {log:q} 2>&1"
