//! What is said about one VM while others are worked on as well.

use std::sync::{Arc, Mutex};

use strongroom_engine::fleet;
use strongroom_engine::run::event::{Code, Event, Kind, Observer};
use strongroom_points::store::Event as StoreEvent;

use super::Ui;
use crate::documents::Warned;

/// Passes on what happens to one VM, and keeps its warnings.
pub struct OfVm {
    ui: Arc<Ui>,
    name: String,
    warned: Mutex<Vec<Warned>>,
}

impl OfVm {
    /// For this VM.
    pub fn new(ui: Arc<Ui>, name: &str) -> Self {
        Self {
            ui,
            name: name.to_owned(),
            warned: Mutex::default(),
        }
    }

    /// Its warnings so far.
    pub fn warned(&self) -> Vec<Warned> {
        self.warned
            .lock()
            .map(|warned| warned.clone())
            .unwrap_or_default()
    }
}

impl fleet::OfVm for OfVm {
    fn repository(&self, event: &StoreEvent) {
        if let Some(text) = Ui::complaint(event) {
            let kind = Kind::warning(Code::RepositoryServer, text);
            return self.event(&Event::now(Some(&self.name), kind));
        }
        let named = |message: &str| format!("{}: {message}", self.name);
        match event {
            StoreEvent::Log { level, message } => self.ui.repository(&StoreEvent::Log {
                level: *level,
                message: named(message),
            }),
            StoreEvent::Progress { message } => self.ui.repository(&StoreEvent::Progress {
                message: named(message),
            }),
        }
    }
}

impl Observer for OfVm {
    fn event(&self, event: &Event<'_>) {
        if let (Kind::Warning { code, text }, Ok(mut warned)) = (&event.kind, self.warned.lock()) {
            warned.push(Warned {
                code: *code,
                vm: Some(self.name.clone()),
                text: text.clone(),
            });
        }
        self.ui.event(event);
    }
}
