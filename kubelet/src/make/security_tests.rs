//! What the runtime is told of security contexts.

use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    Node {
        name: "node1".into(),
        ips: Vec::new(),
        root_dir: "/var/lib/kubelet".into(),
        pod_logs_dir: "/var/log/pods".into(),
        container_logs_dir: "/var/log/containers".into(),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolver_file: None,
        seccomp_default: false,
        cpu_quota_period: None,
        memory_capacity: 0,
        memory_allocatable: 0,
        cpu_capacity: 0,
        cgroup_root: String::new(),
        cgroups_per_qos: false,
        systemd_cgroups: false,
        limits: Default::default(),
    }
}

fn pod(of_pod: &Value, of_container: &Value) -> Pod {
    let container = json!({"name": "c", "securityContext": of_container});
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"securityContext": of_pod, "containers": [container]}}))
    .unwrap()
}

fn told(of_pod: &Value, of_container: &Value) -> cri::LinuxContainerSecurityContext {
    let pod = pod(of_pod, of_container);
    container(&pod, &spec::spec(&pod).containers[0], &node(), &ImageUser::default(), None)
}

/// A profile as `kind name`.
fn profile(profile: Option<&cri::SecurityProfile>) -> String {
    profile.map_or("none".to_owned(), |p| format!("{:?} {}", p.profile_type(), p.localhost_ref))
}

#[test]
fn the_containers_own_context_goes_before_its_pods() {
    let of_pod = json!({"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000],
        "supplementalGroupsPolicy": "Strict", "seLinuxOptions": {"level": "s0:c1"}, "seccompProfile": {"type": "RuntimeDefault"}});
    let inherited = told(&of_pod, &json!({}));
    assert_eq!((inherited.run_as_user.unwrap().value, inherited.run_as_group.unwrap().value), (1000, 2000));
    assert_eq!(inherited.supplemental_groups, [3000, 4000]);
    assert_eq!(inherited.supplemental_groups_policy(), cri::SupplementalGroupsPolicy::Strict);
    assert_eq!(inherited.selinux_options.unwrap().level, "s0:c1");
    assert_eq!(profile(inherited.seccomp.as_ref()), "RuntimeDefault ");
    let own = told(
        &of_pod,
        &json!({"runAsUser": 7, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seLinuxOptions": {"type": "t"},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}),
    );
    assert_eq!(own.run_as_user.unwrap().value, 7);
    assert!(own.readonly_rootfs && own.no_new_privs);
    let capabilities = own.capabilities.unwrap();
    assert_eq!(
        (capabilities.add_capabilities, capabilities.drop_capabilities),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    let selinux = own.selinux_options.unwrap();
    assert_eq!((selinux.r#type.as_str(), selinux.level.as_str()), ("t", ""));
    assert_eq!(profile(own.seccomp.as_ref()), "Localhost /var/lib/kubelet/seccomp/a/b.json");
}

#[test]
fn privileged_and_unmasked_containers_see_all_of_proc() {
    assert!(!told(&json!({}), &json!({})).masked_paths.is_empty());
    for context in [json!({"privileged": true}), json!({"procMount": "Unmasked"})] {
        let told = told(&json!({}), &context);
        assert!(told.masked_paths.is_empty() && told.readonly_paths.is_empty(), "{context}");
    }
    let privileged = told(&json!({"seccompProfile": {"type": "RuntimeDefault"}}), &json!({"privileged": true}));
    assert_eq!(profile(privileged.seccomp.as_ref()), "Unconfined ");
}

#[test]
#[expect(deprecated, reason = "old runtimes read the text")]
fn apparmor_is_by_field_or_by_the_older_annotation() {
    let show = |of_pod: Value, of_container: Value| {
        let told = told(&of_pod, &of_container);
        format!("{} | {}", profile(told.apparmor.as_ref()), told.apparmor_profile)
    };
    let local = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}});
    let default = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    assert_eq!(show(json!({}), json!({})), "none | ");
    assert_eq!(show(default.clone(), json!({})), "RuntimeDefault  | runtime/default");
    assert_eq!(show(default, local), "Localhost mine | localhost/mine");
    let mut annotated = pod(&json!({}), &json!({}));
    let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
    for (value, wanted, needed) in [
        ("localhost/it", "Localhost it", true),
        ("unconfined", "Unconfined ", false),
        ("runtime/default", "RuntimeDefault ", true),
    ] {
        annotated.metadata.annotations = Some([(key.clone(), value.to_owned())].into());
        assert_eq!(profile(apparmor(&annotated, Some(&spec::spec(&annotated).containers[0])).as_ref()), wanted);
        assert_eq!(needs_apparmor(&annotated), needed, "{value}");
    }
}

#[test]
fn a_container_that_must_not_be_root_is_looked_at() {
    let check = |context: Value, uid: Option<i64>, name: &str| {
        let pod = pod(&json!({"runAsNonRoot": true}), &context);
        let image = ImageUser { uid, name: name.into() };
        check_non_root(&pod, &spec::spec(&pod).containers[0], &image)
            .map_err(|text| text.split(" (").next().unwrap().to_owned())
    };
    assert_eq!(check(json!({}), Some(5), ""), Ok(()));
    assert_eq!(check(json!({"runAsUser": 5}), None, ""), Ok(()));
    assert_eq!(check(json!({"runAsNonRoot": false}), None, ""), Ok(()));
    assert_eq!(check(json!({}), None, ""), Err("container has runAsNonRoot and image will run as root".into()));
    assert_eq!(check(json!({"runAsUser": 0}), Some(5), ""), Err("container's runAsUser breaks non-root policy".into()));
    assert_eq!(check(json!({}), None, "app"), Err("container has runAsNonRoot and image has non-numeric user".into()));
}

#[test]
fn namespaces_are_the_pods_or_the_nodes() {
    let show = |fields: Value| {
        let pod: Pod = serde_json::from_value(json!({"spec": fields})).unwrap();
        let told = namespaces(&pod);
        [told.network(), told.pid(), told.ipc()].map(|mode| mode.as_str_name())
    };
    assert_eq!(show(json!({"containers": []})), ["POD", "CONTAINER", "POD"]);
    assert_eq!(show(json!({"containers": [], "shareProcessNamespace": true})), ["POD", "POD", "POD"]);
    let all = json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true});
    assert_eq!(show(all), ["NODE", "NODE", "NODE"]);
}
