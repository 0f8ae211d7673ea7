//! Generates clients and servers from the `.proto` files, without protoc.

/// What is generated; each is a module of the library.
const FILES: &[&str] = &[
    "cri/v1/api.proto",
    "csi/v1/csi.proto",
    "deviceplugin/v1beta1/api.proto",
    // With v1, whose messages it has.
    "dra/v1beta1/api.proto",
    "drahealth/v1alpha1/api.proto",
    "pluginregistration/v1/api.proto",
    "podresources/v1/api.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    for file in FILES {
        let descriptors = protox::compile([file], ["proto"])?;
        tonic_prost_build::configure()
            .build_transport(false)
            .btree_map(".")
            .emit_rerun_if_changed(false)
            .compile_fds(descriptors)?;
    }
    Ok(())
}
