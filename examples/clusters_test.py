"""What is given to Slurm and Kubernetes is well formed, and starts one run."""

import os
import pathlib
import re
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


def test_kubernetes_takes_the_manifest():
    """By the API's published schema. Names and numbers of the two objects agree."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    import yaml

    text = (HERE / "kubernetes.yaml").read_text("utf-8")
    service, job = objects = list(yaml.safe_load_all(text))
    for found in objects:
        kubernetes_validate.validate(found, kubernetes_validate.latest_version(), True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(re.findall(r"--(\w+)=(\S+)", container["args"][0]))
    assert spec["completions"] == spec["parallelism"] == int(flags["num_processes"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (port,) = (ports["port"] for ports in service["spec"]["ports"])
    first = f"{job['metadata']['name']}-0.{pod['subdomain']}:{port}"
    assert flags["coordinator"] == first
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("status, requeued", [(0, False), (1, False), (143, True)])
def test_slurm_queues_a_run_again_that_it_has_ended(tmp_path, status, requeued):
    """Where its time was over; the script has the status of the run."""
    for program, body in (
        ("srun", f'echo "srun $@"; exit {status}'),
        ("scontrol", 'echo "scontrol $@"'),
    ):
        (tmp_path / program).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [HERE / "slurm.sh", "--output_dir=with space"],
        env=os.environ | {"PATH": path, "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "et-trainer --output_dir=with space --strategy=data" in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == requeued
