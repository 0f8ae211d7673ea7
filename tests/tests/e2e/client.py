"""The path of a pod as the official Python client walks it."""

import sys

from kubernetes import client, config, watch
from kubernetes.stream import stream

kubeconfig, namespace, node, image, containerd = sys.argv[1:]
config.load_kube_config(kubeconfig)
core = client.CoreV1Api()
apps = client.AppsV1Api()

nodes = core.list_node().items
assert {"node-1", "node-2"} <= {item.metadata.name for item in nodes}, nodes
version = next(item for item in nodes if item.metadata.name == node).status.node_info.container_runtime_version
assert version.startswith("containerd://" + containerd), version

core.create_namespaced_config_map(
    namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="data"), data={"key": "value"})
)
core.patch_namespaced_config_map("data", namespace, {"data": {"more": "too"}})
assert core.read_namespaced_config_map("data", namespace).data == {"key": "value", "more": "too"}

core.create_namespaced_pod(
    namespace,
    client.V1Pod(
        metadata=client.V1ObjectMeta(name="pod", labels={"app": "pod"}),
        spec=client.V1PodSpec(
            node_selector={"kubernetes.io/hostname": node},
            termination_grace_period_seconds=1,
            containers=[
                client.V1Container(
                    name="shell",
                    image=image,
                    image_pull_policy="Never",
                    command=["sh", "-c", "echo started; sleep 100000"],
                    env_from=[client.V1EnvFromSource(config_map_ref=client.V1ConfigMapEnvSource(name="data"))],
                )
            ],
        ),
    ),
)


def is_ready(pod):
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])


events = watch.Watch()
for event in events.stream(core.list_namespaced_pod, namespace, label_selector="app=pod", timeout_seconds=60):
    if is_ready(event["object"]):
        events.stop()
        break
else:
    sys.exit("the pod did not become Ready")

assert core.read_namespaced_pod_log("pod", namespace) == "started\n"
said = stream(
    core.connect_get_namespaced_pod_exec,
    "pod",
    namespace,
    command=["sh", "-c", "echo $key $more; echo aside >&2"],
    stdout=True,
    stderr=True,
    stdin=False,
    tty=False,
)
assert sorted(said.split("\n")) == ["", "aside", "value too"], said

apps.create_namespaced_deployment(
    namespace,
    client.V1Deployment(
        metadata=client.V1ObjectMeta(name="sleepers"),
        spec=client.V1DeploymentSpec(
            replicas=2,
            selector=client.V1LabelSelector(match_labels={"app": "sleepers"}),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels={"app": "sleepers"}),
                spec=client.V1PodSpec(
                    termination_grace_period_seconds=1,
                    containers=[
                        client.V1Container(
                            name="sleep", image=image, image_pull_policy="Never", command=["sleep", "100000"]
                        )
                    ],
                ),
            ),
        ),
    ),
)
apps.patch_namespaced_deployment_scale("sleepers", namespace, {"spec": {"replicas": 1}})
assert apps.read_namespaced_deployment_scale("sleepers", namespace).spec.replicas == 1

try:
    core.read_namespaced_pod("absent", namespace)
    sys.exit("an absent pod was read")
except client.ApiException as error:
    assert error.status == 404 and "pods \\\"absent\\\" not found" in error.body, error.body

page = core.list_namespaced_config_map(namespace, limit=1)
assert len(page.items) == 1 and page.metadata._continue, page.metadata
rest = core.list_namespaced_config_map(namespace, limit=10, _continue=page.metadata._continue)
assert {item.metadata.name for item in page.items + rest.items} == {"data", "kube-root-ca.crt"}

core.delete_namespaced_pod("pod", namespace)
print("all done")
