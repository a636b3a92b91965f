//! A small XML tree that can be changed and written back, with everything that it does not know kept as it was.
//!
//! Elements hold the reader's own events, so an untouched element is written byte by byte as it was read.

use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

/// Deepest nesting that is read. libvirt's own documents stay under 16.
const MAX_DEPTH: usize = 128;

/// An element with all that is in it.
#[derive(Debug)]
pub struct Element {
    start: BytesStart<'static>,
    children: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Element(Element),
    /// Text, comments and the like.
    Other(Event<'static>),
}

impl Element {
    /// A new element without attributes or children.
    pub fn new(name: &'static str) -> Self {
        Self {
            start: BytesStart::new(name),
            children: Vec::new(),
        }
    }

    /// Adds an attribute; for building.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.start.push_attribute((key, value));
        self
    }

    /// Adds a child; for building.
    pub fn with_child(mut self, child: Element) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    /// Replaces all content by a text; for building.
    pub fn with_text(mut self, text: &str) -> Self {
        self.set_text(text);
        self
    }

    /// Reads the root element of a document. What lies before and after it is left out.
    pub fn parse(xml: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(xml);
        let mut open: Vec<Element> = Vec::new();
        loop {
            let complete = match reader.read_event().map_err(|error| error.to_string())? {
                Event::Start(start) => {
                    if open.len() >= MAX_DEPTH {
                        return Err(format!("its elements nest deeper than {MAX_DEPTH}"));
                    }
                    open.push(Element {
                        start: start.into_owned(),
                        children: Vec::new(),
                    });
                    continue;
                }
                Event::Empty(start) => Element {
                    start: start.into_owned(),
                    children: Vec::new(),
                },
                Event::End(_) => open.pop().ok_or("an element ends that never began")?,
                Event::DocType(_) => return Err("it has a document type".into()),
                Event::Eof => return Err("it ends within an element".into()),
                other => {
                    if let Some(parent) = open.last_mut() {
                        parent.children.push(Node::Other(other.into_owned()));
                    }
                    continue;
                }
            };
            match open.last_mut() {
                Some(parent) => parent.children.push(Node::Element(complete)),
                None => return Ok(complete),
            }
        }
    }

    /// Writes the element and all that is in it.
    pub fn to_xml(&self) -> Result<String, String> {
        let mut writer = Writer::new(Vec::new());
        self.write(&mut writer).map_err(|error| error.to_string())?;
        String::from_utf8(writer.into_inner()).map_err(|error| error.to_string())
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        if self.children.is_empty() {
            return writer.write_event(Event::Empty(self.start.borrow()));
        }
        writer.write_event(Event::Start(self.start.borrow()))?;
        for child in &self.children {
            match child {
                Node::Element(element) => element.write(writer)?,
                Node::Other(event) => writer.write_event(event.borrow())?,
            }
        }
        writer.write_event(Event::End(self.start.to_end()))
    }

    /// The name as written, with its prefix if it has one.
    pub fn name(&self) -> &str {
        self.start.name().0
    }

    /// The value of an attribute.
    pub fn attribute(&self, key: &str) -> Option<String> {
        let attribute = self.start.try_get_attribute(key).ok()??;
        quick_xml::escape::unescape(&attribute.value)
            .ok()
            .map(std::borrow::Cow::into_owned)
    }

    /// Sets attributes (`Some`) and takes attributes away (`None`); the others stay as and where they are.
    pub fn edit_attributes(&mut self, edits: &[(&str, Option<&str>)]) -> Result<(), String> {
        let mut edited = BytesStart::new(self.name().to_owned());
        let mut pending = edits.to_vec();
        for attribute in self.start.attributes() {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let key = attribute.key.0;
            match pending.iter().position(|(name, _)| *name == key) {
                Some(at) => {
                    if let (_, Some(value)) = pending.swap_remove(at) {
                        edited.push_attribute((key, value));
                    }
                }
                // The raw value may stand in single quotes; written it stands in double ones.
                None => edited.push_attribute(Attribute {
                    key: attribute.key,
                    value: attribute.value.replace('"', "&quot;").into(),
                }),
            }
        }
        pending.retain(|(_, value)| value.is_some());
        pending.sort_unstable();
        for (key, value) in pending {
            edited.push_attribute((key, value.unwrap_or_default()));
        }
        self.start = edited;
        Ok(())
    }

    /// Replaces all content by a text.
    pub fn set_text(&mut self, text: &str) {
        self.children = vec![Node::Other(Event::Text(BytesText::new(text).into_owned()))];
    }

    /// The child elements of that name.
    pub fn elements(&self, name: &str) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(move |child| match child {
            Node::Element(element) if element.name() == name => Some(element),
            _ => None,
        })
    }

    /// The child elements of that name, to be changed.
    pub fn elements_mut(&mut self, name: &str) -> impl Iterator<Item = &mut Element> {
        self.children.iter_mut().filter_map(move |child| match child {
            Node::Element(element) if element.name() == name => Some(element),
            _ => None,
        })
    }

    /// All child elements.
    pub fn all_elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Other(_) => None,
        })
    }

    /// Whether there is anything in it but space.
    pub fn has_content(&self) -> bool {
        self.children.iter().any(|child| match child {
            Node::Element(_) => true,
            Node::Other(Event::Text(text)) => !text.trim().is_empty(),
            Node::Other(_) => false,
        })
    }

    /// Takes out all that is in it.
    pub fn clear(&mut self) {
        self.children.clear();
    }

    /// Changes every child element, and takes out those for which `keep` says no.
    pub fn retain_elements(&mut self, mut keep: impl FnMut(&mut Element) -> bool) {
        self.children.retain_mut(|child| match child {
            Node::Element(element) => keep(element),
            Node::Other(_) => true,
        });
    }

    /// Takes out every child element for which `drop` says so.
    pub fn drop_elements(&mut self, drop: impl Fn(&Element) -> bool) {
        self.children
            .retain(|child| !matches!(child, Node::Element(element) if drop(element)));
    }

    /// Adds a child behind the others.
    pub fn push(&mut self, element: Element) {
        self.children.push(Node::Element(element));
    }

    /// Takes out all child elements of that name, in order.
    pub fn take_elements(&mut self, name: &str) -> Vec<Element> {
        let (taken, kept) = std::mem::take(&mut self.children)
            .into_iter()
            .partition::<Vec<_>, _>(|child| matches!(child, Node::Element(found) if found.name() == name));
        self.children = kept;
        let elements = taken.into_iter().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Other(_) => None,
        });
        elements.collect()
    }

    /// Puts `element` where the first child of its name stands and takes out the others of that name; with none,
    /// it becomes the first child.
    pub fn replace_element(&mut self, element: Element) {
        let name = element.name().to_owned();
        let named = |child: &Node| matches!(child, Node::Element(found) if found.name() == name);
        let at = self.children.iter().position(named).unwrap_or(0);
        self.children.retain(|child| !named(child));
        self.children.insert(at, Node::Element(element));
    }

    /// Takes the first child of that name out, to be changed and put back by [`Self::replace_element`].
    pub fn take_element(&mut self, name: &str) -> Option<Element> {
        self.elements_mut(name)
            .next()
            .map(|found| std::mem::replace(found, Element::placeholder(name)))
    }

    fn placeholder(name: &str) -> Element {
        Element {
            start: BytesStart::new(name.to_owned()),
            children: Vec::new(),
        }
    }
}
