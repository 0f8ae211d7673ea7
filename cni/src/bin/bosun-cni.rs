//! The CNI multi-call binary; see the library.

fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os();
    let argv0 = args.next().unwrap_or_default();
    bosun_cni::main(&argv0, args).into()
}
