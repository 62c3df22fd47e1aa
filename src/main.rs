fn main() -> std::process::ExitCode {
    recant::cli::main().into()
}
