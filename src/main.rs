//! The command `shunt`.

fn main() -> std::process::ExitCode {
    shunt::cli::main()
}
