"""The stage `train` of a case on two nodes of a cluster, a process on each: CASE RUN PROFILE."""

import sys
from pathlib import Path

from pipeline.config import load_case
from pipeline.workflow.drive import drive, jobs_of, write_case
from pipeline.workflow.jobs import Stage
from pipeline.workflow.profile import load_profile

if __name__ == "__main__":
    config, folder, site = sys.argv[1:4]
    case, run, profile = load_case(Path(config)), Path(folder), load_profile(site)
    write_case(case, run)
    stage = Stage(parts=1, cores=1, memory_mb=1_500, gpus=0, nodes=2, minutes=10)
    sys.exit(0 if drive(jobs_of(run, {"train": stage}, profile), profile) else 1)
