"""The stage `simulate` of a case on a cluster, in a process that a test can kill: CASE RUN PROFILE PARTS MINUTES [detach]."""

import sys
from pathlib import Path

from pipeline.config import load_case
from pipeline.workflow.drive import drive, jobs_of, write_case
from pipeline.workflow.jobs import Stage
from pipeline.workflow.profile import load_profile

if __name__ == "__main__":
    config, folder, site, parts, minutes = sys.argv[1:6]
    case, run, profile = load_case(Path(config)), Path(folder), load_profile(site)
    write_case(case, run)
    stage = Stage(parts=int(parts), cores=1, memory_mb=500, gpus=0, nodes=1, minutes=int(minutes))
    done = drive(jobs_of(run, {"simulate": stage}, profile), profile, detach=sys.argv[6:] == ["detach"])
    sys.exit(0 if done else 1)
