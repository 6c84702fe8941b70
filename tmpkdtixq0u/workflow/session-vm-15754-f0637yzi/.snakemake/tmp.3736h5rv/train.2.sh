#!/bin/bash
# One job: one command. Signals are passed on to it, its exit code is handed back, and code 75, "state saved, run me again",
# puts the job back into the queue where the scheduler has a command for that.

id=${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-$$}}}
say() { echo "elboscope: job tmpkdtixq0u-f386d158 ($id) on $(hostname -s), $(date -u +%FT%TZ): $*"; }
signalled= child=
trap 'signalled=1; say "got USR1, passes it on"; kill -USR1 $child' USR1
trap 'signalled=1; say "got TERM, passes it on"; kill -TERM $child' TERM

cd /tmp/w/cluster || exit 1
ls /tmp/w/cluster/tmpkdtixq0u > /dev/null # a network filesystem then looks anew for what other nodes have written
say "starts"
/work/main/.venv/bin/python -c '
import json, os, sys
job = json.load(sys.stdin)["params"]
os.environ["OMP_NUM_THREADS"] = str(job["cores"])
os.execvp(job["argv"][0], job["argv"])
' << 'end of properties' &
{"type": "single", "rule": "train", "local": false, "input": ["simulate"], "output": ["train"], "wildcards": {}, "params": {"argv": ["sh", "-c", "sleep 1.0", "train", "/tmp/w/cluster/tmpkdtixq0u/workflow/case.yaml", "--run-dir", "/tmp/w/cluster/tmpkdtixq0u"], "command": "sh -c 'sleep 1.0' train /tmp/w/cluster/tmpkdtixq0u/workflow/case.yaml --run-dir /tmp/w/cluster/tmpkdtixq0u", "folder": "/tmp/w/cluster", "name": "tmpkdtixq0u-f386d158.train", "stage": "train", "log": "/tmp/w/cluster/tmpkdtixq0u/logs/train.log", "cores": 1, "memory_mb": 100, "nodes": 1, "tasks": 1, "gpus": 0, "gpu_options": ""}, "log": [], "threads": 1, "resources": {"tmpdir": "<TBD>", "minutes": 5, "walltime": "00:05:00"}, "jobid": 2}
end of properties
child=$!
while :; do
  signalled=
  wait $child
  code=$?
  [ -z "$signalled" ] && break
done
case $code in 138) code=75 ;; esac # USR1 before it could be handled: nothing was begun
trap - USR1 TERM
say "ended with exit code $code"
if [ $code = 75 ] && scontrol requeue $SLURM_JOB_ID; then
  sleep 60 # until the scheduler ends this one
fi
exit $code

