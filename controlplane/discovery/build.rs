//! Tells the crate the architecture under the name that Go has for it.

fn main() {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let go = match arch.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    println!("cargo::rustc-env=BOSUN_ARCH={go}");
    println!("cargo::rerun-if-changed=build.rs");
}
