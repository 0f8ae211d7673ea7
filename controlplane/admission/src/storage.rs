//! DefaultStorageClass: a claim that names no class gets the default one.

use serde_json::{Value, json};

use crate::{Attributes, World};

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) fn default_class(attributes: &Attributes<'_>, object: &mut Value, world: World<'_>) {
    let named =
        !object["spec"]["storageClassName"].is_null() || object["metadata"]["annotations"].get(BETA_CLASS).is_some();
    if !attributes.creates("", "persistentvolumeclaims") || named {
        return;
    }
    let classes = (world.list)("storage.k8s.io", "storageclasses");
    // Of several defaults the newest counts, then the first by name.
    let key = |class: &Value| {
        let created = class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        (created, std::cmp::Reverse(class["metadata"]["name"].as_str().unwrap_or_default().to_owned()))
    };
    let default = classes.iter().filter(|c| c["metadata"]["annotations"][DEFAULT] == "true").max_by_key(|c| key(c));
    if let Some(class) = default {
        object["spec"]["storageClassName"] = json!(class["metadata"]["name"]);
    }
}
