//! A template is what was signed, or it is refused.

use super::*;
use crate::testing::ssh_key;

struct Lab {
    directory: tempfile::TempDir,
    signing: Signing,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        ssh_key(&key);
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        let signers = directory.path().join("allowed_signers");
        fs::write(&signers, format!("me {public}")).unwrap();
        let store = Store::new(directory.path().join("templates"));
        fs::create_dir(&store.directory).unwrap();
        Self {
            signing: Signing {
                key: Some(key),
                identity: None,
                allowed_signers: Some(signers),
                revoked_keys: None,
            },
            directory,
            store,
        }
    }

    fn make(&self, name: &str) -> Result<Description, TemplateError> {
        let draft = self.store.directory.join(".draft");
        fs::create_dir_all(&draft).unwrap();
        for file in FILES {
            fs::write(draft.join(file), format!("the {file}")).unwrap();
        }
        let description = Description {
            format: FORMAT,
            name: name.into(),
            created: Timestamp::now(),
            source: "test".into(),
            protocol: protocol::VERSION,
            kernel: "6.1".into(),
            root_size: 4096,
            packages: Vec::new(),
            files: BTreeMap::new(),
        };
        self.store
            .publish(&draft, description, &self.signing, &Cancel::new())
    }

    fn open(&self, name: &str) -> Result<Template, TemplateError> {
        self.store.open(name, &self.signing, &Cancel::new())
    }
}

#[test]
fn what_was_signed_is_opened() {
    let lab = Lab::new();
    lab.make("base").unwrap();
    assert_eq!(lab.store.names().unwrap(), ["base"]);
    let mut template = lab.open("base").unwrap();
    let mut text = String::new();
    template.root.read_to_string(&mut text).unwrap();
    assert_eq!(text, "the root.qcow2");
    assert!(matches!(lab.make("base"), Err(TemplateError::Exists(_))));
    lab.store.remove("base").unwrap();
    assert!(lab.store.names().unwrap().is_empty());
    assert!(matches!(lab.open("base"), Err(TemplateError::None { .. })));
    assert!(matches!(
        lab.store.remove("base"),
        Err(TemplateError::None { .. })
    ));
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let lab = Lab::new();
    lab.make("base").unwrap();
    let place = lab.store.directory.join("base");
    for file in fs::read_dir(&place).unwrap() {
        let path = file.unwrap().path();
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // A last line's end is no part of what a signature says.
            if path.ends_with(SIGNATURE) && at == good.len() - 1 {
                continue;
            }
            fs::write(&path, &bad).unwrap();
            assert!(lab.open("base").is_err(), "{} at {at}", path.display());
        }
        fs::write(&path, [good.as_slice(), b"x"].concat()).unwrap();
        assert!(
            path.ends_with(SIGNATURE) || lab.open("base").is_err(),
            "{}",
            path.display()
        );
        fs::remove_file(&path).unwrap();
        assert!(lab.open("base").is_err(), "{} is gone", path.display());
        fs::write(&path, &good).unwrap();
        lab.open("base").unwrap();
    }
}

#[test]
fn a_signature_of_somebody_else_or_for_something_else_is_none() {
    let lab = Lab::new();
    lab.make("base").unwrap();
    let place = lab.store.directory.join("base");
    // A good template under another name.
    fs::rename(&place, lab.store.directory.join("other")).unwrap();
    assert!(matches!(
        lab.open("other"),
        Err(TemplateError::Description { .. })
    ));
    fs::rename(lab.store.directory.join("other"), &place).unwrap();
    // The same key, for manifests.
    let bytes = fs::read(place.join(DESCRIPTION)).unwrap();
    let key = lab.signing.key.as_deref().unwrap();
    let signed = signature::sign(
        &lab.signing,
        key,
        signature::NAMESPACE,
        &bytes,
        Timestamp::now(),
        &Cancel::new(),
    );
    fs::write(place.join(SIGNATURE), signed.unwrap()).unwrap();
    assert!(matches!(lab.open("base"), Err(TemplateError::Untrusted { .. })));
    // No key is trusted.
    let trusts_none = Signing::default();
    let refused = lab.store.open("base", &trusts_none, &Cancel::new());
    assert!(matches!(
        refused,
        Err(TemplateError::Untrusted {
            source: Untrusted::NoSigners,
            ..
        })
    ));
}

#[test]
fn names_lead_nowhere_else() {
    let lab = Lab::new();
    for name in ["", ".", "..", ".hidden", "a/b", "../base", "a b", &"x".repeat(65)] {
        assert!(matches!(lab.open(name), Err(TemplateError::Name(_))), "{name:?}");
        assert!(matches!(lab.store.remove(name), Err(TemplateError::Name(_))));
    }
    assert!(lab.directory.path().exists());
}
