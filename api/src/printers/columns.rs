//! The columns of every kind.

use crate::resource::Resource;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its head, which clients write in capitals.
    pub name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub ty: &'static str,
    /// Whether only `-o wide` shows it.
    pub wide: bool,
    /// What it says.
    pub description: &'static str,
}

const fn s(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", wide: false, description }
}

const fn i(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "integer", wide: false, description }
}

const fn w(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", wide: true, description }
}

const NAME: Column = s("Name", "The object's name, unique among its kind in its namespace.");
const AGE: Column = s("Age", "How long ago the object was made.");
const CREATED: Column = s("Created At", "When the object was made.");
const CONTAINERS: Column = w("Containers", "Names of the containers in the template.");
const IMAGES: Column = w("Images", "Images of the containers in the template.");
const SELECTOR: Column = w("Selector", "Which pods belong to it.");

const POD: &[Column] = &[
    NAME,
    s("Ready", "Containers that are ready, of how many."),
    s("Status", "The phase, or what keeps the pod from running."),
    s("Restarts", "How often containers were restarted, and when last."),
    AGE,
    w("IP", "The pod's address."),
    w("Node", "The node the pod is on."),
    w("Nominated Node", "The node where room is being made for the pod."),
    w("Readiness Gates", "Further conditions for readiness that hold, of how many."),
];
const DEPLOYMENT: &[Column] = &[
    NAME,
    s("Ready", "Ready pods, of how many wanted."),
    i("Up-to-date", "Pods of the newest template."),
    i("Available", "Pods ready for long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const REPLICAS: &[Column] = &[
    NAME,
    i("Desired", "Pods wanted."),
    i("Current", "Pods there are."),
    i("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const DAEMON_SET: &[Column] = &[
    NAME,
    i("Desired", "Nodes that should run the pod."),
    i("Current", "Nodes that run the pod and should."),
    i("Ready", "Nodes whose pod is ready."),
    i("Up-to-date", "Nodes that run the newest template."),
    i("Available", "Nodes whose pod has been ready for long enough."),
    s("Node Selector", "Labels of the nodes that should run the pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const STATEFUL_SET: &[Column] = &[NAME, s("Ready", "Ready pods, of how many wanted."), AGE, CONTAINERS, IMAGES];
const JOB: &[Column] = &[
    NAME,
    s("Status", "Where the job stands."),
    s("Completions", "Pods that succeeded, of how many wanted."),
    s("Duration", "How long the job took, or has taken so far."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const CRON_JOB: &[Column] = &[
    NAME,
    s("Schedule", "When jobs are made."),
    s("Timezone", "The zone of the schedule."),
    Column { name: "Suspend", ty: "boolean", wide: false, description: "Whether no jobs are made for now." },
    i("Active", "Jobs that run."),
    s("Last Schedule", "How long ago a job was made."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const SERVICE: &[Column] = &[
    NAME,
    s("Type", "How the service is reached."),
    s("Cluster-IP", "The service's address in the cluster."),
    s("External-IP", "The service's addresses from outside."),
    s("Port(s)", "The service's ports."),
    AGE,
    SELECTOR,
];
const EVENT: &[Column] = &[
    s("Last Seen", "How long ago it happened last."),
    s("Type", "Normal or Warning."),
    s("Reason", "A word for what happened."),
    s("Object", "What it happened to."),
    w("Subobject", "The part it happened to."),
    w("Source", "Who says so."),
    s("Message", "What happened."),
    w("First Seen", "How long ago it happened first."),
    w("Count", "How often it happened."),
    w("Name", "The event's name."),
];
const NODE: &[Column] = &[
    NAME,
    s("Status", "Whether the node is ready."),
    s("Roles", "What the node is for."),
    AGE,
    s("Version", "The kubelet's version."),
    w("Internal-IP", "The node's address in the cluster."),
    w("External-IP", "The node's address from outside."),
    w("OS-Image", "The system's name."),
    w("Kernel-Version", "The kernel's version."),
    w("Container-Runtime", "The runtime's name and version."),
];
const PERSISTENT_VOLUME: &[Column] = &[
    NAME,
    s("Capacity", "The volume's size."),
    s("Access Modes", "How the volume can be mounted."),
    s("Reclaim Policy", "What becomes of the volume once it is released."),
    s("Status", "Whether the volume is bound."),
    s("Claim", "Which claim has the volume."),
    s("StorageClass", "The volume's class."),
    s("VolumeAttributesClass", "The volume's class of attributes."),
    s("Reason", "Why the volume is in its status."),
    AGE,
    w("VolumeMode", "Filesystem or Block."),
];
const PERSISTENT_VOLUME_CLAIM: &[Column] = &[
    NAME,
    s("Status", "Whether the claim is bound."),
    s("Volume", "The volume it has."),
    s("Capacity", "The volume's size."),
    s("Access Modes", "How the volume can be mounted."),
    s("StorageClass", "The class asked for."),
    s("VolumeAttributesClass", "The class of attributes asked for."),
    AGE,
    w("VolumeMode", "Filesystem or Block."),
];
const AUTOSCALER: &[Column] = &[
    NAME,
    s("Reference", "What is scaled."),
    s("Targets", "The metrics, now and as they should be."),
    s("MinPods", "The fewest pods."),
    s("MaxPods", "The most pods."),
    s("Replicas", "Pods there are."),
    AGE,
];
const BINDING: &[Column] = &[
    NAME,
    s("Role", "The role that is given."),
    AGE,
    w("Users", "Users who get it."),
    w("Groups", "Groups that get it."),
    w("ServiceAccounts", "Service accounts that get it."),
];
const SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    s("SignerName", "Who should sign."),
    s("Requestor", "Who asks."),
    s("RequestedDuration", "How long the certificate should last."),
    s("Condition", "Where the request stands."),
];
const CSI_DRIVER: &[Column] = &[
    NAME,
    s("AttachRequired", "Whether volumes are attached first."),
    s("PodInfoOnMount", "Whether the driver is told of the pod."),
    s("StorageCapacity", "Whether the driver reports capacity."),
    s("TokenRequests", "The tokens the driver needs."),
    s("RequiresRepublish", "Whether mounts are refreshed."),
    s("Modes", "How long volumes live."),
    AGE,
];
const STORAGE_CLASS: &[Column] = &[
    NAME,
    s("Provisioner", "Who makes the volumes."),
    s("ReclaimPolicy", "What becomes of a volume once it is released."),
    s("VolumeBindingMode", "When claims are bound."),
    s("AllowVolumeExpansion", "Whether volumes can grow."),
    AGE,
];
const ATTACHMENT: &[Column] = &[
    NAME,
    s("Attacher", "Who attaches."),
    s("PV", "The volume."),
    s("Node", "The node."),
    s("Attached", "Whether it is attached."),
    AGE,
];

/// The columns of a kind.
#[must_use]
pub fn columns(resource: &Resource) -> &'static [Column] {
    match (resource.group, resource.kind) {
        ("", "Pod") => POD,
        ("", "Node") => NODE,
        (_, "Event") => EVENT,
        ("", "Service") => SERVICE,
        ("", "Endpoints") => &[NAME, const { s("Endpoints", "Addresses that can serve.") }, AGE],
        (_, "ReplicationController" | "ReplicaSet") => REPLICAS,
        ("", "PersistentVolume") => PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => PERSISTENT_VOLUME_CLAIM,
        ("", "Namespace") => &[NAME, const { s("Status", "Whether the namespace is going.") }, AGE],
        ("", "ConfigMap") => &[NAME, const { s("Data", "How many entries it has.") }, AGE],
        ("", "Secret") => {
            &[NAME, const { s("Type", "What it holds.") }, const { s("Data", "How many entries it has.") }, AGE]
        }
        ("", "ServiceAccount") => &[NAME, const { s("Secrets", "How many secrets it may use.") }, AGE],
        ("", "ResourceQuota") => &[
            NAME,
            const { s("Request", "What may be asked for, and what is.") },
            const { s("Limit", "What limits may be set, and are.") },
            AGE,
        ],
        ("", "LimitRange") => &[NAME, CREATED],
        ("", "PodTemplate") => &[NAME, CONTAINERS, IMAGES, const { s("Pod Labels", "Labels of the template.") }],
        ("", "ComponentStatus") => &[
            NAME,
            const { s("Status", "Whether it is healthy.") },
            const { s("Message", "What it says.") },
            const { s("Error", "What is wrong.") },
        ],
        ("apps", "Deployment") => DEPLOYMENT,
        ("apps", "DaemonSet") => DAEMON_SET,
        ("apps", "StatefulSet") => STATEFUL_SET,
        ("apps", _) => {
            &[NAME, const { s("Controller", "Whose revision it is.") }, const { i("Revision", "Its number.") }, AGE]
        }
        ("batch", "Job") => JOB,
        ("batch", _) => CRON_JOB,
        ("autoscaling", _) => AUTOSCALER,
        ("policy", _) => &[
            NAME,
            const { s("Min Available", "Pods that must stay.") },
            const { s("Max Unavailable", "Pods that may be missing.") },
            const { i("Allowed Disruptions", "Pods that may go now.") },
            AGE,
        ],
        ("discovery.k8s.io", _) => &[
            NAME,
            const { s("AddressType", "What its addresses are.") },
            const { s("Ports", "Ports of the endpoints.") },
            const { s("Endpoints", "Addresses of the endpoints.") },
            AGE,
        ],
        ("networking.k8s.io", "Ingress") => &[
            NAME,
            const { s("Class", "Who serves it.") },
            const { s("Hosts", "Names it serves.") },
            const { s("Address", "Where it is reached.") },
            const { s("Ports", "Ports it serves on.") },
            AGE,
        ],
        ("networking.k8s.io", "IngressClass") => &[
            NAME,
            const { s("Controller", "Who serves it.") },
            const { s("Parameters", "Where its settings are.") },
            AGE,
        ],
        ("networking.k8s.io", "NetworkPolicy") => &[NAME, const { s("Pod-Selector", "Pods it is about.") }, AGE],
        ("networking.k8s.io", "IPAddress") => &[NAME, const { s("ParentRef", "What has the address.") }, AGE],
        ("networking.k8s.io", _) => &[NAME, const { s("CIDRs", "Its ranges of addresses.") }, AGE],
        ("certificates.k8s.io", _) => SIGNING_REQUEST,
        (_, "RoleBinding" | "ClusterRoleBinding") => BINDING,
        (_, "Role" | "ClusterRole") => &[NAME, CREATED],
        ("coordination.k8s.io", _) => &[NAME, const { s("Holder", "Who holds the lease.") }, AGE],
        ("storage.k8s.io", "StorageClass") => STORAGE_CLASS,
        ("storage.k8s.io", "CSIDriver") => CSI_DRIVER,
        ("storage.k8s.io", "CSINode") => &[NAME, const { i("Drivers", "How many drivers the node has.") }, AGE],
        ("storage.k8s.io", "CSIStorageCapacity") => {
            &[NAME, const { s("StorageClassName", "The class.") }, const { s("Capacity", "What is free.") }, AGE]
        }
        ("storage.k8s.io", "VolumeAttachment") => ATTACHMENT,
        ("storage.k8s.io", _) => &[NAME, const { s("DriverName", "Whose attributes they are.") }, AGE],
        ("scheduling.k8s.io", _) => &[
            NAME,
            const { i("Value", "The priority.") },
            const {
                Column {
                    name: "Global-Default",
                    ty: "boolean",
                    wide: false,
                    description: "Whether pods without a class get it.",
                }
            },
            const { s("PreemptionPolicy", "Whether others must make room.") },
            AGE,
        ],
        ("node.k8s.io", _) => &[NAME, const { s("Handler", "The runtime's handler.") }, AGE],
        (_, "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            &[NAME, const { i("Webhooks", "How many webhooks it has.") }, AGE]
        }
        (_, "ValidatingAdmissionPolicy") => &[
            NAME,
            const { i("Validations", "How many rules it has.") },
            const { s("ParamKind", "The kind of its parameters.") },
            AGE,
        ],
        (_, "ValidatingAdmissionPolicyBinding") => {
            &[NAME, const { s("PolicyName", "The policy.") }, const { s("ParamRef", "Where its parameters are.") }, AGE]
        }
        _ => &[NAME, AGE],
    }
}
