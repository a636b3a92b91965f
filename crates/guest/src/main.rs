//! `/init` of the throwaway VM.

fn main() {
    strongroom_guest::program::main();
}
