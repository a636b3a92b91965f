//! What the hypervisor's administrator does.

use strongroom_base::exec::shell_word;
use strongroom_hypervisor::names::CHECKPOINT_DESCRIPTION;

use super::{Rights, SOCKETS, jobs_account};

/// What runs as either account, and whatever libvirt is asked for by way of it.
const REACH: &str = include_str!("reach.sh");
const JOBS: &str = include_str!("jobs.sh");

/// The configuration files of libvirt's daemons know this word.
const ACCESS: &str = "access_drivers";

impl Rights {
    /// The script that is run for the key as the account, whatever was asked for.
    pub fn reach_script(&self) -> String {
        let vms = shell_word(&self.vms.join(" "));
        script(&format!("VMS={vms}\nSOCKETS={SOCKETS}\n"), REACH)
    }

    /// The script that is run for the key as the account for jobs.
    pub fn jobs_script(&self) -> String {
        let tls = self.nbd_tls.as_ref().map(|(address, ports)| {
            let address = address.to_string();
            (address, *ports.start(), *ports.end())
        });
        let (address, first, last) = tls.unwrap_or_default();
        let settings = format!(
            "VMS={vms}\nOWN={own}\nSOCKETS={SOCKETS}\nIMAGES={images}\n\
             TLS_ADDRESS='{address}' TLS_FIRST={first} TLS_LAST={last}\nDESCRIPTION={description}\n",
            vms = shell_word(&self.vms.join(" ")),
            own = shell_word(self.own.as_deref().unwrap_or_default()),
            images = self.images.display(),
            description = shell_word(CHECKPOINT_DESCRIPTION),
        );
        script(&settings, JOBS)
    }

    /// The line of `authorized_keys` of the account.
    pub fn authorized_key(&self) -> String {
        self.key_line(&reach_file(&self.account))
    }

    /// The line of `authorized_keys` of the account for jobs.
    pub fn jobs_authorized_key(&self) -> String {
        self.key_line(&jobs_file(&self.account))
    }

    fn key_line(&self, script: &str) -> String {
        format!("restrict,command=\"exec /bin/sh {script}\" {}\n", self.key.trim())
    }

    /// What the hypervisor's administrator does, as root, one command after the other. May be done again: then the new rights
    /// replace the old ones. The key is let in last, when libvirt is known to refuse what it has to.
    pub fn commands(&self) -> Vec<String> {
        let Self { account, group, .. } = self;
        let jobs = jobs_account(account);
        vec![
            "umask 022".into(),
            user(account, &format!("--groups {group} ")),
            user(&jobs, ""),
            file(
                &format!("/etc/polkit-1/rules.d/40-{account}.rules"),
                &self.polkit(),
            ),
            // A daemon that does not ask polkit lets everything be done that may talk to it. Where there are several, each has its own file.
            format!(
                "for file in $(grep -ls {ACCESS} /etc/libvirt/*d.conf); do \
                 grep -q '^ *{ACCESS}' $file || echo '{ACCESS} = [ \"polkit\" ]' >>$file; \
                 grep -q '^ *{ACCESS}.*\"polkit\"' $file || \
                 {{ echo \"$file: {ACCESS} is set and does not say \\\"polkit\\\"\" >&2; exit 1; }}; done"
            ),
            "for daemon in libvirtd virtqemud virtstoraged virtsecretd virtnetworkd virtnodedevd virtnwfilterd virtinterfaced; do \
             systemctl try-restart $daemon 2>/dev/null || true; done"
                .into(),
            format!(
                "su -s /bin/sh -c 'virsh -q -c qemu:///system list --all' {account} >/dev/null"
            ),
            format!(
                "if su -s /bin/sh -c 'virsh -q -c qemu:///system nodeinfo' {account} >/dev/null 2>&1; then \
                 echo 'libvirt does not ask polkit about each call: the key is not let in' >&2; exit 1; fi"
            ),
            format!("install -d -m 755 -o root -g root /home/{account}/.ssh /home/{jobs}/.ssh"),
            format!("chown root:root /home/{account} /home/{jobs} && chmod 755 /home/{account} /home/{jobs}"),
            file(&reach_file(account), &self.reach_script()),
            file(&jobs_file(account), &self.jobs_script()),
            file(&format!("/home/{account}/.ssh/authorized_keys"), &self.authorized_key()),
            file(&format!("/home/{jobs}/.ssh/authorized_keys"), &self.jobs_authorized_key()),
        ]
    }
}

fn script(settings: &str, body: &str) -> String {
    format!("#!/bin/sh\n# Made by `strongroom hypervisor-rights`.\n{settings}{body}")
}

fn reach_file(account: &str) -> String {
    format!("/home/{account}/reach")
}

fn jobs_file(account: &str) -> String {
    format!("/home/{}/jobs", jobs_account(account))
}

fn user(name: &str, groups: &str) -> String {
    format!(
        "id -u {name} >/dev/null 2>&1 || \
         useradd --system --create-home --home-dir /home/{name} --shell /bin/sh --password '*' {groups}{name}"
    )
}

/// Writes a file, which only root can change.
fn file(path: &str, content: &str) -> String {
    format!("cat >{path} <<'END_OF_FILE'\n{content}END_OF_FILE")
}
