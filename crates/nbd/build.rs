//! Finds libnbd.

fn main() -> Result<(), pkg_config::Error> {
    pkg_config::Config::new()
        .atleast_version("1.14")
        .probe("libnbd")?;
    Ok(())
}
