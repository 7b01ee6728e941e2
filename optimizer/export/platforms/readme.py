"""How each format is started, checked and rolled back, for people."""

from __future__ import annotations

from optimizer.export.deployment import GRPC_PORT, HTTP_PORT, Deployment
from optimizer.export.platforms.autoscaler import pod_target
from optimizer.export.platforms.pods import NODE_LABEL
from optimizer.export.platforms.sagemaker_request import asking

_CHECK = """
## Check it

    python -m optimizer verify repository      # on a machine like the one that serves

says whether files, outputs and capacity are still what was measured.
"""

_WATCH = """
## Watch it

`monitoring/triton-rules.yaml` are rules for Prometheus, `triton-rules-test.yaml` beside them is
their test (`promtool test rules`), and `grafana-dashboard.json` is a dashboard to import. They
know the limits and what was measured: alerts are for a model that no server shows or that answers
nothing, for an instance that has gone, for latency near or over its limit, for load above the
capacity, for failures, and for queues, latency or batches that leave what was measured.
Triton's latencies are those inside the server, without network and client. They tell servers
apart by the label `instance`, and select by the model's name: two servers with different models
of one name need rules that select by a further label.
"""

_KUBERNETES = """
## Start it

1. `docker build -t REGISTRY/{name}:TAG .`, and push it. The models are in the image.
2. Write that name into `images` of `overlays/production/kustomization.yaml`.
3. `kubectl apply -k overlays/production`

The HorizontalPodAutoscaler goes by requests a second of each pod, at {pod_target:.4g} (the
capacity less the headroom, and less at least the tenth that its controller lets pass). Prometheus
has to scrape the pods (they carry the usual annotations), and prometheus-adapter has to offer the
metric: `prometheus-adapter.yaml` holds its values. At least {replicas} pods run, for the demand of
the study; the overlay is the place for other numbers. A node holds one pod, as it was measured: an
update needs one node more for a while.

{nodes}

## Roll back

`kubectl apply -k` the overlay that was applied before: image, configuration and autoscaler belong
together, and `kubectl rollout undo` would leave the new autoscaler over the old server.
"""

_KSERVE = """
## Start it

1. `docker build -t REGISTRY/{name}:TAG .`, and push it. The models are in the image.
2. Write that name into `images` of `kustomization.yaml`.
3. `kubectl apply -k .`

The ServingRuntime is Triton as it was measured; the InferenceService is deployed without Knative
(RawDeployment), and scaled by the HorizontalPodAutoscaler beside it: by requests a second of each
pod, at {pod_target:.4g} (the capacity less the headroom, and less at least the tenth that its
controller lets pass). For that, Prometheus has to scrape the pods, and prometheus-adapter has to
offer the metric: `prometheus-adapter.yaml` holds its values.

{nodes}

## Roll back

`kubectl apply -k` the folder that was applied before.
"""

_COMPOSE = """
## Start it

    docker compose up --build --wait

is one instance, which has its machine to itself, as it was measured. For the demand of the study
{replicas} of them are needed: each on a machine of its own, behind a load balancer. `--scale`
starts no second one, as the ports are those of the machine. With `--profile monitoring` Prometheus
runs beside it, on 127.0.0.1:9090.

Triton does not ask who calls, so its ports are open on 127.0.0.1 alone. To let other machines in,
write `"{http_port}:{http_port}"` or `"{grpc_port}:{grpc_port}"` into `ports` of compose.yaml,
behind a firewall, or a proxy that asks.

## Roll back

Start the folder that was started before.
"""

_SAGEMAKER = """
## Start it

1. Build `image/` and push it to a registry that SageMaker reads, under a tag that no other image
   ever gets: `docker build -t REGISTRY/{name}:TAG image`
2. `python deploy.py --region REGION --bucket BUCKET --role ARN --image REGISTRY/{name}:TAG` says
   what it would do; with `--apply` it does it (boto3). Or upload model.tar.gz to an address of its
   own, and create or update a stack of `template.yaml` with it: that sets alarms as well, for
   latency, capacity and failures, and sends them to the SNS topic of its parameter AlarmTopicArn.

{replicas} instances of {instance_type} serve the demand of the study. Autoscaling goes by
invocations of each instance, at {target:.4g} a second (the capacity less the headroom), from
{replicas} to {most_replicas} instances.

An update is made without a gap: the endpoint keeps its name, and gets a new model and
configuration, whose names end with a digest of all that is deployed (archive, image, role,
environment, instance type and count). Instances that autoscaling has added stay. While an endpoint
scales, SageMaker refuses another instance type: deploy.py takes autoscaling away for such an update
and puts it back, less schedules and further policies of your own where it succeeds; a stack cannot.
{asking}
## Roll back

Deploy the folder that was deployed before, with its image: model and configuration are still there.
"""

_ON_NODES_OF_ITS_TYPE = """
A patch in `{kustomization}` keeps pods to nodes of the type whose price was counted ({node_type},
by the label `{label}`): where nodes are called otherwise, as on another cloud or on machines of
your own, write into it what yours are called, or no pod will start.
"""

_ON_ANY_NODE = """
Nothing keeps pods to machines like the one that was measured: {instance_type} is no type of EC2's,
so what nodes of it are called is not known. Where nodes differ, patch a `nodeSelector` in
`{kustomization}`.
"""

_KUSTOMIZATIONS = {
    "kubernetes": "overlays/production/kustomization.yaml",
    "kserve": "kustomization.yaml",
}

_STEPS = {
    "sagemaker": _SAGEMAKER + _CHECK,
    "kubernetes": _KUBERNETES + _CHECK + _WATCH,
    "kserve": _KSERVE + _CHECK + _WATCH,
    "compose": _COMPOSE + _CHECK + _WATCH,
    "monitoring": _WATCH,
}


def readme(platform: str, deployment: Deployment) -> str:
    """The README of a format."""
    steps = _STEPS[platform].format(
        nodes=_nodes(_KUSTOMIZATIONS.get(platform, ""), deployment),
        asking=asking(deployment),
        http_port=HTTP_PORT,
        grpc_port=GRPC_PORT,
        name=deployment.name,
        target=deployment.target_per_second,
        pod_target=pod_target(deployment, deployment.capacity_per_second),
        replicas=deployment.replicas,
        most_replicas=deployment.most_replicas,
        instance_type=deployment.price.instance_type,
    )
    return f"# {deployment.name}\n\n{deployment.summary}\n{steps}"


def _nodes(kustomization: str, deployment: Deployment) -> str:
    """Which machines pods come to, and the file that says so."""
    text = _ON_ANY_NODE if deployment.node_type is None else _ON_NODES_OF_ITS_TYPE
    return text.strip().format(
        kustomization=kustomization,
        node_type=deployment.node_type,
        label=NODE_LABEL,
        instance_type=deployment.price.instance_type,
    )
