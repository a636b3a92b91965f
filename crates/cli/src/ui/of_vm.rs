//! What is said about one VM while others are worked on as well.

use std::sync::{Arc, Mutex};

use strongroom_borg::Event as BorgEvent;
use strongroom_engine::run::event::{Event, Observer};

use super::Ui;

/// Passes on what happens to one VM, and keeps its warnings.
pub struct OfVm {
    ui: Arc<Ui>,
    /// The VM's name, where it has to be said.
    name: Option<String>,
    said: Mutex<Vec<String>>,
}

impl OfVm {
    /// For this VM; its name goes before each line if others are worked on as well.
    pub fn new(ui: Arc<Ui>, name: &str, others: bool) -> Self {
        Self {
            ui,
            name: others.then(|| name.to_owned()),
            said: Mutex::default(),
        }
    }

    /// Its warnings so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// Takes what the repository's server and the Borg client say.
    pub fn repository(&self, event: &BorgEvent) {
        if let Some(text) = Ui::complaint(event) {
            return self.warn(&text);
        }
        match (&self.name, event) {
            (Some(name), BorgEvent::Log { level, message }) => self.ui.repository(&BorgEvent::Log {
                level: *level,
                message: format!("{name}: {message}"),
            }),
            (Some(name), BorgEvent::Progress { message }) => self.ui.repository(&BorgEvent::Progress {
                message: format!("{name}: {message}"),
            }),
            _ => self.ui.repository(event),
        }
    }

    fn warn(&self, text: &str) {
        if let Ok(mut said) = self.said.lock() {
            said.push(text.to_owned());
        }
        self.ui.warn(&self.named(text));
    }

    fn named(&self, text: &str) -> String {
        match &self.name {
            // Some name it themselves.
            Some(name) if !text.contains(name.as_str()) => format!("{name}: {text}"),
            _ => text.to_owned(),
        }
    }
}

impl Observer for OfVm {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Warning(text) => self.warn(text),
            Event::Note(text) => self.ui.engine(&Event::Note(self.named(text))),
            _ => self.ui.about(self.name.as_deref(), event),
        }
    }
}
