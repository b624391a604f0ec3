"""The chart, as Helm itself renders it: what Kubernetes' schemas say of it, and what the sidecar does with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from ratelimit.config import SETTINGS
from ratelimit.deploy import alert_rules
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.deploy.tools import ROOT, run, tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHART: Final = ROOT / "deploy" / "helm" / "ratelimit"
VERSIONS: Final = ("1.30", "1.37")
"""Of Kubernetes: the oldest that the chart is for, and the newest whose schemas there are."""
ROLE: Final = "arn:aws:iam::123456789012:role/limits"
NEEDED: Final[dict[str, Any]] = {
    "image": {"repository": "registry/ratelimit", "tag": "1"},
    "store": "dynamodb://limits?region=eu-west-1",
    "existingSecret": "limits",
}
SHOP: Final = {"name": "shop", "image": "registry/shop:7"}
GATEWAY: Final = {**NEEDED, "upstream": "http://shop:8000"}
SIDECAR: Final = {**NEEDED, "mode": "sidecar", "app": {"port": 3000, "containers": [SHOP]}}
EVERYTHING: Final = {
    **SIDECAR,
    "autoscaling": {"enabled": False},
    "networkPolicy": {"enabled": True, "clients": [{"podSelector": {}}], "monitoring": [{"namespaceSelector": {}}]},
    "serviceAccount": {"roleArn": ROLE, "annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"annotations": {"a": "b"}},
    "imagePullSecrets": [{"name": "registry"}],
    "extraArgs": ["--grpc=0.0.0.0:8081"],
    "extraEnv": [{"name": "RATELIMIT_DEADLINE", "value": "0.1"}],
    "podAnnotations": {"a": "b"}, "podLabels": {"a": "b"}, "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}}, "ipv6": True,
}  # fmt: skip
CASES: Final = {"decisions": NEEDED, "gateway": GATEWAY, "sidecar": SIDECAR, "everything": EVERYTHING}


@pytest.fixture
def values(tmp_path: Path) -> Path:
    return tmp_path / "values.yaml"


def rendered(values: Path, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every object by its kind; the admin listener's Service by a name of its own."""
    values.write_text(yaml.safe_dump(given), encoding="utf-8")
    text = run(tool("helm"), "template", "shop", str(CHART), "--namespace", "shop", "--values", values)
    objects = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    found = {each["kind"] + ("/admin" if each["metadata"]["name"].endswith("-admin") else ""): each for each in objects}
    assert len(found) == len(objects)
    return found


def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def sidecar(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = pod(objects)["containers"][0]
    return container


@pytest.mark.parametrize("case", CASES)
def test_helm_and_the_schemas_of_kubernetes(values: Path, case: str) -> None:
    objects = rendered(values, CASES[case])
    run(tool("helm"), "lint", "--strict", str(CHART), "--values", values)
    for kind in ("ServiceMonitor", "PrometheusRule"):  # the Prometheus operator's, not Kubernetes'
        objects.pop(kind, None)
    manifest = values.with_name("objects.yaml")
    manifest.write_text(yaml.safe_dump_all(objects.values()), encoding="utf-8")
    for version in VERSIONS:
        run(tool("kubernetes-validate"), "--strict", "--no-warn", "--kubernetes-version", version, manifest)


def test_what_there_is(values: Path) -> None:
    always = {"ConfigMap", "Deployment", "PodDisruptionBudget", "Service", "ServiceAccount"}
    assert set(rendered(values, GATEWAY)) == always | {"HorizontalPodAutoscaler"}
    objects = rendered(values, EVERYTHING)
    assert set(objects) == always | {"NetworkPolicy", "Service/admin", "ServiceMonitor", "PrometheusRule"}
    assert objects["Deployment"]["spec"]["replicas"] == 2
    assert objects["ServiceAccount"]["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": ROLE, "a": "b"}
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "limits", "key": "admin-read-token"}
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load(alert_rules())
    assert objects["PrometheusRule"]["metadata"]["labels"]["release"] == "prometheus"
    wanted = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= objects["Service/admin"]["metadata"]["labels"].items()
    assert not wanted.items() <= objects["Service"]["metadata"]["labels"].items()
    rules = objects["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["ports"] for rule in rules] == [[{"port": "http"}], [{"port": "admin"}]]
    assert all(rule["from"] for rule in rules)


def test_whatever_selects_pods_selects_these(values: Path) -> None:
    objects = rendered(values, {**GATEWAY, "networkPolicy": {"enabled": True}, "serviceMonitor": {"enabled": True}})
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for kind in ("Service", "Service/admin"):
        assert objects[kind]["spec"]["selector"].items() <= labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert objects[kind]["spec"]["selector"]["matchLabels"].items() <= labels
    (rule,) = objects["NetworkPolicy"]["spec"]["ingress"]
    assert rule == {"ports": [{"port": "http"}]}, "nobody was let in to the admin listener"


def test_it_takes_no_more_than_it_needs(values: Path) -> None:
    objects = rendered(values, SIDECAR)
    container = sidecar(objects)
    assert container["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert pod(objects)["automountServiceAccountToken"] is False
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert [path for path, mount in mounts.items() if not mount.get("readOnly")] == ["/var/lib/ratelimit"]
    secrets = [each for each in container["env"] if "TOKEN" in each["name"]]
    keys = [each["valueFrom"]["secretKeyRef"]["key"] for each in secrets]
    assert keys == ["admin-token", "admin-read-token", "api-token"]


@pytest.mark.parametrize("case", CASES)
def test_its_variables_are_settings_and_its_command_is_understood(values: Path, ratelimit: Command, case: str) -> None:
    container = sidecar(rendered(values, CASES[case]))
    for each in container["env"]:
        assert each["name"].removeprefix("RATELIMIT_").lower() in SETTINGS or each["name"] == "RATELIMIT_CONFIG"
    status, _, err = ratelimit(*container["args"], "--access-log", "xml")
    assert (status, err.partition(":")[0]) == (2, "error"), "an option too much is all that is wrong with it"
    assert "--access-log" in err


def test_what_it_stands_in_front_of(values: Path) -> None:
    def upstreams(given: dict[str, Any]) -> list[str]:
        return [arg for arg in sidecar(rendered(values, given))["args"] if arg.startswith("--upstream")]

    assert upstreams(GATEWAY) == ["--upstream=http://shop:8000"]
    assert upstreams(SIDECAR) == ["--upstream=http://127.0.0.1:3000"]
    assert upstreams(NEEDED) == []


def test_the_decision_endpoint_has_a_token(values: Path) -> None:
    """Without an upstream the service does not start without: so the Secret has to have the key."""
    for given, optional in ((NEEDED, False), (GATEWAY, True)):
        variables = {each["name"]: each for each in sidecar(rendered(values, given))["env"]}
        assert variables["RATELIMIT_API_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is optional


def test_prometheus_may_only_look(values: Path) -> None:
    """So the Secret has to have a token for that, where there is a ServiceMonitor."""
    for enabled in (True, False):
        given = {**GATEWAY, "existingSecret": "123", "serviceMonitor": {"enabled": enabled}}
        variables = {each["name"]: each for each in sidecar(rendered(values, given))["env"]}
        asked = variables["RATELIMIT_ADMIN_READ_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert asked == {"name": "123", "key": "admin-read-token", "optional": not enabled}


def test_probes_ask_the_admin_listener(values: Path) -> None:
    container = sidecar(rendered(values, GATEWAY))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["RATELIMIT_ADMIN"] == f"0.0.0.0:{ports['admin']}"
    assert f"--port={ports['http']}" in container["args"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready",
    }  # fmt: skip
    assert {probe["port"] for probe in probes.values()} == {"admin"}


def test_a_pod_is_left_the_time_that_its_sidecar_takes(values: Path) -> None:
    own = {"name": "other", "image": "registry/other:1", "lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}
    objects = rendered(values, {**SIDECAR, "grace": 50, "app": {"containers": [SHOP, own]}})
    assert "--grace=50" in sidecar(objects)["args"]
    assert pod(objects)["terminationGracePeriodSeconds"] > 50 + 10, "refunds and the usage log come last"
    _, shop, other = pod(objects)["containers"]
    assert shop["lifecycle"] == {"preStop": {"sleep": {"seconds": 50}}}
    assert other == own


def test_the_configuration_is_understood_and_a_change_of_it_rolls_the_pods(
    values: Path, ratelimit: Command, tmp_path: Path
) -> None:
    def digest(objects: dict[str, dict[str, Any]]) -> str:
        return str(objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    was, now = rendered(values, GATEWAY), rendered(values, {**GATEWAY, "config": '[policies.api]\nquotas = "1/day"\n'})
    assert digest(was) != digest(now)
    file = tmp_path / "ratelimit.toml"
    file.write_text(was["ConfigMap"]["data"]["ratelimit.toml"], encoding="utf-8")
    assert ratelimit("config", "check", str(file)).status == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({**GATEWAY, "mode": "proxy"}, "at '/mode': value must be one of 'gateway', 'sidecar'"),
        ({**GATEWAY, "worker": 2}, "additional properties 'worker' not allowed"),
        ({**GATEWAY, "workers": 0}, "at '/workers'"),
        ({**GATEWAY, "image": {}}, "image.repository: say where the image from deploy/Dockerfile is"),
        ({**GATEWAY, "store": ""}, "store: say where it counts, as in dynamodb://TABLE?region=REGION"),
        ({**GATEWAY, "store": "redis://x"}, "at '/store'"),
        ({**GATEWAY, "existingSecret": ""}, "existingSecret: say which Secret has the admin-token"),
        ({**GATEWAY, "app": {"containers": [SHOP]}}, "app.containers: only in mode sidecar"),
        ({**GATEWAY, "serviceAccount": {"roleArn": "limits"}}, "at '/serviceAccount/roleArn'"),
        ({**GATEWAY, "linger": 40}, "linger: more than grace"),
        ({**GATEWAY, "autoscaling": {"min": 11}}, "autoscaling.min: more than autoscaling.max"),
        ({**SIDECAR, "app": {"port": 8080, "containers": [SHOP]}}, "app.port: 8080 and 9090 are the sidecar's own"),
        ({**NEEDED, "mode": "sidecar"}, "mode sidecar: say the app's containers in app.containers"),
    ],
)
def test_bad_values_are_said(values: Path, given: dict[str, Any], told: str) -> None:
    values.write_text(yaml.safe_dump(given), encoding="utf-8")
    command = [tool("helm"), "template", "shop", str(CHART), "--values", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert told in done.stderr


def test_it_serves_and_is_ready(values: Path, tmp_path: Path) -> None:
    """The container's command, variables and configuration, carried out here: on free ports, counting in memory."""
    objects = rendered(values, {**NEEDED, "workers": 1, "store": "memory://"})
    container = sidecar(objects)
    config = tmp_path / "ratelimit.toml"
    text = objects["ConfigMap"]["data"]["ratelimit.toml"].replace("/var/lib/ratelimit", str(tmp_path))
    config.write_text(text, encoding="utf-8")
    env = {each["name"]: each.get("value", f"the-token-{each['name']}") for each in container["env"]}
    env |= {"RATELIMIT_CONFIG": str(config), "RATELIMIT_ADMIN": "127.0.0.1:0", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "ratelimit", *container["args"]]
    here = ["--host", "127.0.0.1", "--port", "0", "--json", "--linger", "0"]
    env["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen([*command, *here], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert httpx.get(f"{told['admin']}{container['readinessProbe']['httpGet']['path']}").status_code == 200
            assert httpx.get(f"{told['admin']}/metrics").status_code == 401
            bearer = {"Authorization": "Bearer the-token-RATELIMIT_ADMIN_READ_TOKEN"}
            assert httpx.get(f"{told['admin']}/metrics", headers=bearer).status_code == 200
            assert httpx.post(f"{told['admin']}/reload", headers=bearer).status_code == 401
            bearer = {"Authorization": "Bearer the-token-RATELIMIT_API_TOKEN"}
            asked = httpx.post(
                f"{told['listening']}/v1/check", json={"user": "alice", "action": "api"}, headers=bearer
            ).json()
            assert (asked["allowed"], asked["limit"]) == (True, 100)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
