//! Which of the processor's instructions hashing and encrypting use. Each library finds out for itself; this says what it
//! finds, for people who wonder why a machine is slow.

use super::Encryption;

impl Encryption {
    /// For each algorithm that content goes through, the fastest instructions that the processor has for it, as in
    /// "AES-256-CTR with VAES and AVX-512".
    pub fn instructions(self) -> Vec<String> {
        let [aes, sha, blake2] = found();
        let cipher = self.is_encrypted().then_some(("AES-256-CTR", aes));
        let hash = if self.is_blake2() {
            ("BLAKE2b", blake2)
        } else {
            ("SHA-256", sha)
        };
        let used = cipher.into_iter().chain([hash]);
        used.map(|(algorithm, with)| format!("{algorithm} with {with}"))
            .collect()
    }
}

/// For AES, SHA-256 and BLAKE2b, by the rules of the crates `aes`, `sha2` and `blake2b_simd`.
#[cfg(target_arch = "x86_64")]
fn found() -> [&'static str; 3] {
    const PLAIN: &str = "no special instructions";
    let has_avx2 = is_x86_feature_detected!("avx2");
    let aes = if !is_x86_feature_detected!("aes") {
        PLAIN
    } else if !is_x86_feature_detected!("vaes") {
        "AES-NI"
    } else if is_x86_feature_detected!("avx512f") {
        "VAES and AVX-512"
    } else {
        "VAES"
    };
    let has_sse41 = is_x86_feature_detected!("sse4.1");
    let sha = if has_sse41 && is_x86_feature_detected!("sha") {
        "SHA-NI"
    } else {
        PLAIN
    };
    let blake2 = match (has_avx2, has_sse41) {
        (true, _) => "AVX2",
        (false, true) => "SSE4.1",
        _ => PLAIN,
    };
    [aes, sha, blake2]
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> [&'static str; 3] {
    ["whatever the libraries find"; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_names_what_its_content_goes_through() {
        let of = |encryption: Encryption| {
            let named: Vec<String> = encryption.instructions();
            let first = |text: &String| text.split(' ').next().map(str::to_owned);
            named.iter().filter_map(first).collect::<Vec<_>>()
        };
        assert_eq!(of(Encryption::RepokeyBlake2), ["AES-256-CTR", "BLAKE2b"]);
        assert_eq!(of(Encryption::Keyfile), ["AES-256-CTR", "SHA-256"]);
        assert_eq!(of(Encryption::AuthenticatedBlake2), ["BLAKE2b"]);
        assert_eq!(of(Encryption::None), ["SHA-256"]);
    }
}
