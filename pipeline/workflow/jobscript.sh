#!/bin/bash
# One job: one command. Signals are passed on to it, its exit code is handed back, and code 75, "state saved, run me again",
# puts the job back into the queue where the scheduler has a command for that.
@SETUP@
id=${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-$$}}}
say() { echo "elboscope: job @NAME@ ($id) on $(hostname -s), $(date -u +%FT%TZ): $*"; }
signalled= child=
trap 'signalled=1; say "got USR1, passes it on"; kill -USR1 $child' USR1
trap 'signalled=1; say "got TERM, passes it on"; kill -TERM $child' TERM

cd @CWD@ || exit 1
ls @RUN@ > /dev/null # a network filesystem then looks anew for what other nodes have written
say "starts"
@PYTHON@ -I -c '
import json, os, sys
job = json.load(sys.stdin)["params"]
os.environ["OMP_NUM_THREADS"] = str(job["cores"])
os.execvp(job["argv"][0], job["argv"])
' << '@END@' &
@PROPERTIES@
@END@
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
if [ $code = 75 ] && @REQUEUE@; then
  sleep 60 # until the scheduler ends this one
fi
exit $code
