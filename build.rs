//! What a build is known by afterwards, for the manifests of results: see `src/store/provenance.rs`.

use std::path::Path;
use std::process::Command;

fn main() {
    let said = |name: &str| std::env::var(name).unwrap_or_default();
    let release = said("PROFILE") == "release";
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let flags = [
        said("TARGET"),
        format!("opt-level {}", said("OPT_LEVEL")),
        if said("DEBUG") == "false" { String::new() } else { "debug".to_owned() },
        said("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " "),
        if said("CARGO_FEATURE_CUDA").is_empty() { String::new() } else { "cuda".to_owned() },
    ];
    let flags: Vec<String> = flags.into_iter().filter(|flag| !flag.is_empty()).collect();
    println!("cargo:rustc-env=RECANT_BUILD={}", flags.join(", "));
    let compiler = output(Command::new(said("RUSTC")).arg("--version"));
    println!("cargo:rustc-env=RECANT_COMPILER={compiler}");
    println!("cargo:rustc-env=RECANT_LIBRARIES={}", libraries());
    if !said("CARGO_FEATURE_CUDA").is_empty() {
        kernels(&said("OUT_DIR"));
    }
    // A debug build is made again and again between commits: its revision would say little.
    if release && Path::new(".git").is_dir() {
        println!("cargo:rerun-if-changed=.git/logs/HEAD");
        let revision = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
        println!("cargo:rustc-env=RECANT_REVISION={revision}");
    }
}

/// The CUDA kernels as PTX, which the driver compiles for the card it finds, an A100 or newer. Products and sums are rounded
/// one by one, as on the CPU.
fn kernels(to: &str) {
    const SOURCE: &str = "src/kernels/cuda/kernels.cu";
    println!("cargo:rerun-if-changed={SOURCE}");
    for name in ["NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let home = |home: String| format!("{home}/bin/nvcc");
    let nvcc = std::env::var("NVCC").ok().or_else(|| std::env::var("CUDA_HOME").ok().map(home));
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".to_owned());
    let status = Command::new(&nvcc)
        .args(["--ptx", "-O3", "-std=c++17", "-fmad=false", "-arch=compute_80", "-o"])
        .arg(Path::new(to).join("kernels.ptx"))
        .arg(SOURCE)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "`{nvcc}` does not compile {SOURCE}: the feature `cuda` needs a CUDA toolkit, named by NVCC or CUDA_HOME"
    );
}

/// The first line that a program prints; nothing where it cannot.
fn output(command: &mut Command) -> String {
    let done = command.output().ok().filter(|done| done.status.success());
    let text = done.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// The versions of the libraries that compute.
fn libraries() -> String {
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let version = |name: &str| {
        let rest = lock.split(&format!("name = \"{name}\"\nversion = \"")).nth(1)?;
        Some(format!("{name} {}", rest.split('"').next()?))
    };
    ["candle-core", "gemm", "rayon"].into_iter().filter_map(version).collect::<Vec<_>>().join(", ")
}
