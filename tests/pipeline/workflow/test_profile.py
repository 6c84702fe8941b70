"""Profiles: those of the package, and what is wrong with one of a site, in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.workflow.profile import load_profile, saved_profile, shared_profiles, write_profile

LEAST = 'submit: "qsub -N {name} -o {log}"\nstatus: mystat\ncancel: qdel\n'


@pytest.mark.parametrize("name", shared_profiles())
def test_profiles_of_the_package_load(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    write_profile(profile, tmp_path)
    assert saved_profile(tmp_path) == profile


def test_submit_is_handed_to_snakemake_with_its_own_placeholders() -> None:
    command = load_profile("slurm").submit_command(detach=False)
    assert "--job-name={params.name:q}" in command
    assert "--time={resources.minutes}" in command
    assert command.endswith("--dependency=singleton")


@pytest.mark.parametrize(
    ("ids", "expected"), [("", "--dependency=singleton"), ("12 13", "--dependency=singleton,afterok:12:13")]
)
def test_a_detached_job_waits_for_those_before_it(ids: str, expected: str) -> None:
    command = load_profile("slurm").submit_command(detach=True).replace("{dependencies}", ids)
    said = subprocess.run(["sh", "-c", command.replace("sbatch", "echo")], capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST + "sumbit: x\n", "sumbit: Extra inputs are not permitted; known here: executor, submit"),
        (LEAST.replace("{log}", "{lgo}"), "submit: unknown {lgo}; expected {name}"),
        (LEAST.replace("{log}", "${x"), "write {{ and }} for braces of the shell"),
        (LEAST.replace("cancel: qdel\n", ""), "cancel: required"),
        (LEAST + "jobs: 0\n", "jobs: Input should be greater than 0"),
        ("submit: [", "not valid YAML"),
    ],
)
def test_a_wrong_profile_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_profile(str(tmp_path / "site.yaml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_names_the_known() -> None:
    with pytest.raises(InputError, match="not one of local, slurm-gpu, slurm"):
        load_profile("slrm")


def test_detach_needs_a_scheduler_that_knows_dependencies(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(LEAST)
    with pytest.raises(InputError, match="no `after`"):
        load_profile(str(tmp_path / "site.yaml")).submit_command(detach=True)


def test_profiles_in_the_documentation_load(root: Path, tmp_path: Path) -> None:
    blocks = [b.split("```")[0] for b in (root / "docs/cluster.md").read_text().split("```yaml\n")[1:]]
    profiles = [b for b in blocks if "submit:" in b]
    assert len(profiles) == 3
    for text in profiles:
        (tmp_path / "site.yaml").write_text(text)
        profile = load_profile(str(tmp_path / "site.yaml"))
        script = profile.submit_command(detach=False)
        subprocess.run(["sh", "-n", "-c", script.replace("{", "").replace("}", "")], check=True)
        subprocess.run(["sh", "-n", "-c", f"{profile.status} 12"], check=True)
