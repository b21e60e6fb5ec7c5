"""The Cloud TPU scripts call what they should: stand-ins for gcloud and kubectl record it."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TPU = ROOT / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
SETTINGS = {
    "TPU_NAME": "slice",
    "TPU_ZONE": "some-zone",
    "TPU_ACCELERATOR": "v5litepod-16",
    "TPU_RUNTIME": "tpu-vm-tf-2.18.0-pod-pjrt",
}
PLACE = ["--zone=some-zone"]
RECIPE = ["supcon_imagenet_resnet50", "--model_dir=gs://bucket/run"]
# Records how it is called, and prints the next of the answers to that call; the last one stays.
STUB = """#!{python}
import json, os, sys, tarfile
folder = os.environ["STUB_FOLDER"]
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
for argument in sys.argv[1:]:
    if "supcon_tf." in argument and os.path.isfile(argument):
        with tarfile.open(argument) as archive:
            json.dump(archive.getnames(), open(folder + "/archive.json", "w"))
if "-" in sys.argv:
    open(folder + "/stdin", "w").write(sys.stdin.read())
answers = json.load(open(folder + "/answers.json"))
for part in answers:
    if part in " ".join(sys.argv):
        answer = answers[part].pop(0) if len(answers[part]) > 1 else answers[part][0]
        json.dump(answers, open(folder + "/answers.json", "w"))
        if isinstance(answer, int):
            sys.exit(answer)
        print(answer)
        break
"""


class Cloud:
    """A folder with stand-ins for gcloud and kubectl."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "kubectl"):
            (folder / name).write_text(STUB.format(python=sys.executable))
            (folder / name).chmod(0o755)
        self.answer({})

    def answer(self, answers):
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def script(self, name, *arguments, check=True, settings=SETTINGS, **more):
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "STUB_FOLDER": str(self.folder),
            **settings,
            **more,
        }
        done = subprocess.run(
            ["bash", str(TPU / name), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def remote_command(call):
    """The command line that `gcloud ... ssh --command=` runs, as words."""
    return shlex.split(call[-1].removeprefix("--command="))


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    command = [shellcheck, "--external-sources", f"--source-path={TPU}", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("spot", [True, False])
def test_create_asks_for_a_vm_or_a_queued_resource(cloud, spot):
    options = ["--spot"] if spot else []
    cloud.script("create.sh", *options)
    cloud.script("create.sh", "--queued", *options, GCP_PROJECT="mine", TPU_NETWORK="net")
    vm, queued = cloud.calls()
    assert vm == [
        "gcloud", "compute", "tpus", "tpu-vm", "create", "slice", *PLACE,
        "--accelerator-type=v5litepod-16", "--version=tpu-vm-tf-2.18.0-pod-pjrt", *options,
    ]  # fmt: skip
    assert queued == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "slice-queued",
        "--node-id=slice", *PLACE, "--project=mine", "--accelerator-type=v5litepod-16",
        "--runtime-version=tpu-vm-tf-2.18.0-pod-pjrt", *options, "--network=net",
    ]  # fmt: skip


def test_setup_sends_what_runs_to_every_host_and_installs_it(cloud):
    cloud.script("setup.sh")
    copy, install = cloud.calls()
    assert copy[1:5] == ["compute", "tpus", "tpu-vm", "scp"] and copy[-1] == "--worker=all"
    assert copy[6] == "slice:supcon_tf.tar.gz"
    assert install[1:7] == ["compute", "tpus", "tpu-vm", "ssh", "slice", *PLACE]
    assert install[7] == "--worker=all"
    assert remote_command(install)[-3:] == ["bash", "supcon_tf/tpu/host_setup.sh", "image"]
    names = json.loads((cloud.folder / "archive.json").read_text())
    assert {"setup.py", "README.md", "supcon_tf/main.py", "tpu/host_run.sh"} <= set(names)
    assert f"flags/{RECIPE[0]}.flags" in names and not any(n.startswith(".git") for n in names)


def test_plain_images_get_tensorflow_from_the_requirements(cloud):
    cloud.script("setup.sh", TPU_RUNTIME="v2-alpha-tpuv6e")
    assert remote_command(cloud.calls()[-1])[-1] == "wheel"


@pytest.mark.parametrize("source", ["image", "wheel"])
def test_host_setup_keeps_the_tensorflow_of_an_image(cloud, source):
    lines = cloud.script("host_setup.sh", source, "--dry_run").stdout.splitlines()
    assert ("--system-site-packages" in lines[0]) == (source == "image")
    assert (str(TPU / "requirements.txt") in lines[2]) == (source == "wheel")
    assert lines[3].split()[1:5] == ["install", "-q", "--no-deps", f"{TPU}/.."]


def test_run_on_one_host_takes_its_own_tpu(cloud):
    cloud.answer({"describe": ["10.0.0.1"]})
    awkward = "--class_names=a b;'$HOME'"
    cloud.script("run.sh", *RECIPE, awkward, TFDS_DATA_DIR="gs://bucket/tfds")
    assert cloud.calls()[-1][7] == "--worker=0"
    assert remote_command(cloud.calls()[-1]) == [
        "bash", "supcon_tf/tpu/host_run.sh", "start", "image", "local",
        "--recipe=supcon_imagenet_resnet50", "--strategy=tpu", "--tpu_name=local",
        "--precision=mixed_bfloat16", "--data_dir=gs://bucket/tfds",
        "--model_dir=gs://bucket/run", awkward,
    ]  # fmt: skip


@pytest.mark.parametrize("runtime", ["tpu-vm-tf-2.18.0-pod-pjrt", "v2-alpha-tpuv6e"])
def test_run_on_several_hosts_goes_through_their_servers(cloud, runtime):
    cloud.answer({"describe": ["10.0.0.1;10.0.0.2"]})
    cloud.script("run.sh", *RECIPE, TPU_RUNTIME=runtime)
    *before, last = cloud.calls()[1:]
    servers = "grpc://10.0.0.1:8470,grpc://10.0.0.2:8470"
    source = "wheel" if "v6e" in runtime else "image"
    assert remote_command(last)[2:5] == ["start", source, servers]
    assert f"--tpu_name={servers}" in remote_command(last)
    started = [remote_command(call)[-1] for call in before]
    assert started == (["serve"] if source == "wheel" else [])  # The image has its own servers.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "usage: run.sh RECIPE"),
        (["--model_dir=gs://b"], "usage: run.sh RECIPE"),
        (["no_such", "--model_dir=gs://b"], "unknown recipe no_such"),
        (RECIPE[:1], "set --model_dir=gs://"),
        ([RECIPE[0], "--model_dir=runs/mine"], "set --model_dir=gs://"),
    ],
)
def test_run_refuses_before_it_calls_anything(cloud, arguments, message):
    done = cloud.script("run.sh", *arguments, check=False)
    assert done.returncode == 1 and message in done.stderr
    assert not cloud.calls()


def test_a_missing_setting_is_named(cloud):
    settings = {k: v for k, v in SETTINGS.items() if k != "TPU_ZONE"}
    done = cloud.script("create.sh", check=False, settings=settings)
    assert done.returncode == 1 and "TPU_ZONE is not set" in done.stderr


def verbs(calls):
    """The calls in short: what was done to the slice, without the looking."""
    short = []
    for call in calls:
        if call[4] in ("create", "delete", "scp"):
            short.append(call[4])
        elif "start" in (command := remote_command(call)) and "host_run.sh" in command[1]:
            short.append("start")
    return short


def test_survive_goes_on_after_a_stop_and_after_losing_the_slice(cloud):
    cloud.answer(
        {
            "queued-resources list": [
                "", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED",
                "", "ACTIVE", "ACTIVE",
            ],
            "host_run.sh state": ["none", "running", "75", "none", "0"],
            "describe": ["10.0.0.1"],
        }
    )  # fmt: skip
    done = cloud.script("survive.sh", *RECIPE, TPU_POLL_SECONDS="0")
    assert verbs(cloud.calls()) == [
        "create", "scp", "start", "start", "delete", "create", "scp", "start",
    ]  # fmt: skip
    created = next(call for call in cloud.calls() if call[4] == "create")
    assert created[3] == "queued-resources" and "--spot" in created
    assert "the slice was preempted" in done.stdout and "done;" in done.stdout


def test_survive_gives_up_on_a_run_that_fails(cloud):
    cloud.answer(
        {
            "queued-resources list": ["ACTIVE"],
            "host_run.sh state": ["none", "1"],
            "describe": ["10.0.0.1"],
        }
    )
    done = cloud.script(
        "survive.sh", *RECIPE, check=False, TPU_POLL_SECONDS="0", TPU_MAX_FAILURES="3"
    )
    assert done.returncode == 1 and "failed (3 of 3)" in done.stdout
    assert verbs(cloud.calls()) == ["scp", "start", "start", "start"]


def test_survive_outlives_a_cloud_that_does_not_answer(cloud):
    cloud.answer(
        {
            "queued-resources list": [1, "ACTIVE"],
            "scp": [1, ""],
            "host_run.sh state": [255, "none", "0"],
            "describe": ["10.0.0.1"],
        }
    )
    cloud.script("survive.sh", *RECIPE, TPU_POLL_SECONDS="0")
    assert verbs(cloud.calls()) == ["scp", "scp", "start"]


@pytest.mark.parametrize("state", ["ACTIVE", ""])
def test_delete_takes_the_queued_resource_with_the_slice(cloud, state):
    cloud.answer({"queued-resources list": [state]})
    cloud.script("delete.sh")
    kind, name = ("queued-resources", "slice-queued") if state else ("tpu-vm", "slice")
    options = ["--force", "--quiet"] if state else ["--quiet"]
    expected = ["gcloud", "compute", "tpus", kind, "delete", name, *PLACE, *options]
    assert cloud.calls()[1:] == [expected]


def test_logs_and_stop_go_to_the_first_host(cloud):
    cloud.script("logs.sh")
    cloud.script("stop.sh")
    logs, stop = cloud.calls()
    assert logs[7] == stop[7] == "--worker=0"
    assert remote_command(logs) == ["tail", "-n", "100", "-F", "supcon_run/train.log"]
    assert remote_command(stop) == ["bash", "supcon_tf/tpu/host_run.sh", "stop"]


DRY_RUNS = {
    "create.sh": [],
    "setup.sh": [],
    "run.sh": RECIPE,
    "logs.sh": [],
    "stop.sh": [],
    "survive.sh": RECIPE,
    "delete.sh": [],
    "job.sh": ["start", *RECIPE],
    "host_setup.sh": ["wheel"],
    "host_run.sh": ["start", "image", "local", "--recipe=x"],
    "pod.sh": ["--recipe=x"],
}
JOB = {
    "JOB_IMAGE": "registry/supcon",
    "GKE_TPU_ACCELERATOR": "tpu-v5-lite-podslice",
    "GKE_TPU_TOPOLOGY": "4x4",
    "TPU_HOSTS": "4",
}


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS if path.name != "common.sh"))
def test_a_dry_run_calls_nothing_and_prints_what_it_would(cloud, name):
    done = cloud.script(name, *DRY_RUNS[name], "--dry_run", **JOB)
    assert not cloud.calls()
    assert re.search(r"^(gcloud|kubectl|# kubectl|/.*pip|env|python|exec|tar) ?", done.stdout, re.M)


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened in 10 seconds")


def test_a_host_starts_one_run_and_tells_how_it_ended(cloud):
    python = cloud.folder / "supcon_env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        'echo "load=$TPU_LOAD_LIBRARY $*"\n'
        "trap 'exit 75' TERM\n"
        '[[ "$*" != *fail* ]] || exit 3\n'
        "while true; do sleep 0.05; done\n"
    )
    python.chmod(0o755)

    def host_run(*arguments):
        return cloud.script("host_run.sh", *arguments).stdout.strip()

    assert host_run("state") == "none"
    start = ["start", "image", "grpc://a:8470,grpc://b:8470", "--recipe=x", "--name=a b"]
    assert "Started" in host_run(*start)
    try:
        assert host_run("state") == "running"
        assert "nothing started" in host_run(*start)
        host_run("stop")
        wait_for(lambda: host_run("state") == "75")
    finally:
        pid = int((cloud.folder / "supcon_run" / "train.pid").read_text())
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], capture_output=True)
    log = (cloud.folder / "supcon_run" / "train.log").read_text()
    assert log == "load=0 -m supcon_tf.main --recipe=x --name=a b\n"
    host_run("start", "image", "local", "--fail")
    wait_for(lambda: host_run("state") == "3")


def render_job(cloud, *flags, **settings):
    printed = cloud.script("job.sh", "start", *RECIPE, *flags, "--dry_run", **{**JOB, **settings})
    assert "${" not in printed.stdout
    return yaml.safe_load(printed.stdout)


def test_the_job_asks_for_the_slice_and_passes_the_flags(cloud):
    awkward = ["--a=b c", '--q="x" \\ y', "--n=1: #2"]
    job = render_job(cloud, *awkward, TFDS_DATA_DIR="gs://bucket/tfds")
    assert job["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and job["kind"] == "JobSet"
    (slice_job,) = job["spec"]["replicatedJobs"]
    spec = slice_job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4  # One pod on each host.
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "registry/supcon"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["args"] == [
        "--recipe=supcon_imagenet_resnet50",
        "--data_dir=gs://bucket/tfds",
        "--model_dir=gs://bucket/run",
        *awkward,
    ]


def test_the_job_tells_preemption_from_failure(cloud):
    job = render_job(cloud, JOB_MAX_RESTARTS="7")
    policy = job["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes, disruption = spec["podFailurePolicy"]["rules"]
    (container,) = spec["template"]["spec"]["containers"]
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert codes["onExitCodes"]["values"] == [75]
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # As a podFailurePolicy demands.
    assert spec["successPolicy"]["rules"] == [{"succeededIndexes": "0"}]


HOSTILE = 'RANDOM[$(touch "$HOME/taken")]'


@pytest.mark.parametrize("value", [HOSTILE, "-1", "08", "4\n5"])
@pytest.mark.parametrize(
    "script,name",
    [
        ("run.sh", "TPU_HOSTS"),
        ("job.sh", "TPU_CHIPS_PER_HOST"),
        ("job.sh", "JOB_MAX_RESTARTS"),
        ("pod.sh", "TPU_WORKER_ID"),
        ("survive.sh", "TPU_POLL_SECONDS"),
        ("survive.sh", "TPU_MAX_FAILURES"),
    ],
)
def test_a_setting_that_is_no_number_is_refused_and_nothing_runs(cloud, script, name, value):
    settings = {**JOB, "TPU_WORKER_HOSTNAMES": "a,b", name: value}
    done = cloud.script(script, *DRY_RUNS[script], "--dry_run", check=False, **settings)
    assert done.returncode == 1 and f"{name}=" in done.stderr and "whole number" in done.stderr
    assert not done.stdout and not cloud.calls() and not (cloud.folder / "taken").exists()


@pytest.mark.parametrize(
    "name", ["JOB_NAME", "JOB_SERVICE_ACCOUNT", "JOB_IMAGE", "GKE_TPU_ACCELERATOR",
             "GKE_TPU_TOPOLOGY"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["a\n  annotations: {b: c}", 'a"b', "a: b"])
def test_a_setting_cannot_add_keys_to_the_job(cloud, name, value):
    settings = {**JOB, name: value}
    done = cloud.script("job.sh", *DRY_RUNS["job.sh"], "--dry_run", check=False, **settings)
    assert done.returncode == 1 and f"{name}=" in done.stderr and not done.stdout


def test_a_flag_of_the_job_cannot_hold_a_line_break(cloud):
    flag = "--a=b\n    restartPolicy: Always"
    done = cloud.script("job.sh", *DRY_RUNS["job.sh"], flag, "--dry_run", check=False, **JOB)
    assert done.returncode == 1 and "line break" in done.stderr and not done.stdout


def test_names_that_yaml_would_read_as_another_type_stay_text(cloud):
    job = render_job(cloud, JOB_NAME="true", JOB_SERVICE_ACCOUNT="1")
    assert job["metadata"]["name"] == "true"
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "1"


def test_job_calls_kubectl(cloud):
    cloud.script("job.sh", "start", *RECIPE, **JOB)
    cloud.script("job.sh", "logs")
    cloud.script("job.sh", "delete")
    apply, logs, delete = cloud.calls()
    assert apply == ["kubectl", "apply", "-f", "-"]
    assert yaml.safe_load((cloud.folder / "stdin").read_text())["metadata"]["name"] == "supcon"
    assert logs[:3] == ["kubectl", "logs", "--follow"]
    assert delete == ["kubectl", "delete", "jobset", "supcon"]


def test_each_pod_of_a_slice_does_its_part(cloud):
    def pod(**settings):
        printed = cloud.script("pod.sh", "--recipe=x", "--seed=1", "--dry_run", **settings).stdout
        return [line.strip() for line in printed.splitlines()]

    main = "-m supcon_tf.main --recipe=x --strategy=tpu --precision=mixed_bfloat16"
    server = f"python {TPU}/host_server.py"
    assert pod() == [f"exec python {main} --tpu_name=local --seed=1"]
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b"}
    assert pod(**hosts, TPU_WORKER_ID="1") == [f"exec {server}"]
    served, trained = pod(**hosts, TPU_WORKER_ID="0")
    assert served == server
    assert shlex.split(trained)[:3] == ["exec", "env", "TPU_LOAD_LIBRARY=0"]
    assert shlex.join(shlex.split(trained)[3:]) == (
        f"python {main} --tpu_name=grpc://a:8470,grpc://b:8470 --seed=1"
    )


def test_the_requirements_are_those_of_the_package_with_tensorflow_for_tpus():
    lines = (TPU / "requirements.txt").read_text().splitlines()
    pins = {line for line in lines if line and not line.startswith("#")}
    names = {re.split(r"[=<>~!]", pin)[0] for pin in pins}
    setup = ast.parse((ROOT / "setup.py").read_text())
    (needed,) = [
        ast.literal_eval(keyword.value)
        for node in ast.walk(setup)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "install_requires"
    ]
    package = {re.split(r"[=<>~!]", name)[0] for name in needed}
    assert package - {"tensorflow"} <= names
    assert {"tensorflow-tpu", "libtpu"} <= {pin.split("==")[0] for pin in pins if "==" in pin}


def test_the_readme_documents_every_setting():
    internal = {"BASH_SOURCE", "ARGUMENTS", "DRY_RUN", "HERE", "PLACE", "HOME", "FOLDER", "PYTHON"}
    internal |= {"JOB_ARGUMENTS", "TPU_LOAD_LIBRARY"}
    used = set()
    for path in SCRIPTS:
        used |= set(re.findall(r"\$\{?([A-Z][A-Z_]{3,})\b", path.read_text()))
    used |= set(re.findall(r"\$\{([A-Z_]+)\}", (TPU / "job.yaml").read_text()))
    readme = (TPU / "README.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", readme, re.M))
    assert used - internal == documented


def test_no_project_and_no_zone_is_written_down():
    for path in (*SCRIPTS, TPU / "job.yaml", TPU / "Dockerfile"):
        assert not re.search(r"\b[a-z]+-[a-z]+\d-[a-f]\b", path.read_text()), path


@pytest.mark.slow
def test_a_host_server_answers(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(TPU / "host_server.py"), f"--port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert f"Serving on port {port} " in server.stdout.readline()
        code = (
            "import tensorflow as tf\n"
            f"tf.config.experimental_connect_to_host('localhost:{port}', job_name='worker')\n"
            "with tf.device('/job:worker/task:0/device:CPU:0'):\n"
            "    print((tf.constant(20) + 1).device)\n"
        )
        client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    finally:
        server.kill()
        server.wait()
    assert "/job:worker/replica:0/task:0/device:CPU:0" in client.stdout, client.stderr
