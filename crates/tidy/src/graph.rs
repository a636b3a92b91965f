//! Circles: files that cannot be read one after the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::Module;

/// Arrows from one file to another.
pub type Arrows = BTreeSet<(Module, Module)>;

/// The circles that are more than a parent with its own children: each set of files of which every one leads to every other.
pub fn circles(arrows: &Arrows) -> Vec<Vec<Module>> {
    // A parent and its child may name each other: what is left has no circle.
    let apart = arrows
        .iter()
        .filter(|(from, to)| !is_family(from, to))
        .cloned()
        .collect();
    let mut circles = strong(&apart);
    // And with these arrows no stranger is in a family's circle.
    let families = strong(arrows);
    circles.extend(families.into_iter().filter(|circle| !has_head(circle)));
    circles.sort();
    circles.dedup();
    circles
}

/// Whether one of the two is above the other in the tree.
fn is_family(one: &Module, other: &Module) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn has_head(circle: &[Module]) -> bool {
    let is_head = |head: &Module| circle.iter().all(|module| module.starts_with(head));
    circle.iter().any(is_head)
}

/// Sets of at least two that all lead to each other.
fn strong(arrows: &Arrows) -> Vec<Vec<Module>> {
    let mut next: BTreeMap<&Module, Vec<&Module>> = BTreeMap::new();
    for (from, to) in arrows {
        next.entry(from).or_default().push(to);
    }
    let reach: BTreeMap<_, _> = next.keys().map(|from| (*from, reachable(&next, from))).collect();
    let leads = |from: &Module, to: &Module| reach.get(from).is_some_and(|reach| reach.contains(to));
    let mut found: BTreeSet<Vec<Module>> = BTreeSet::new();
    for from in next.keys() {
        let circle: Vec<_> = next
            .keys()
            .filter(|to| leads(from, to) && leads(to, from))
            .collect();
        if circle.len() > 1 {
            found.insert(circle.into_iter().map(|module| (*module).clone()).collect());
        }
    }
    found.into_iter().collect()
}

fn reachable<'a>(next: &BTreeMap<&'a Module, Vec<&'a Module>>, from: &Module) -> BTreeSet<&'a Module> {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<_> = next.get(from).into_iter().flatten().copied().collect();
    while let Some(module) = todo.pop() {
        if seen.insert(module) {
            todo.extend(next.get(module).into_iter().flatten().copied());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(arrows: &[(&str, &str)]) -> Vec<String> {
        let module = |name: &str| -> Module {
            name.split("::")
                .filter(|n| !n.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let arrows = arrows
            .iter()
            .map(|(from, to)| (module(from), module(to)))
            .collect();
        let name = |circle: Vec<Module>| -> Vec<String> {
            circle.into_iter().map(|module| module.join("::")).collect()
        };
        circles(&arrows)
            .into_iter()
            .map(|circle| name(circle).join(" "))
            .collect()
    }

    #[test]
    fn a_parent_and_its_children_are_no_circle() {
        assert!(
            found(&[
                ("a", "a::b"),
                ("a::b", "a"),
                ("a", "a::c"),
                ("a::c", "a"),
                ("a::b", "a::c")
            ])
            .is_empty()
        );
    }

    #[test]
    fn siblings_and_strangers_are_one() {
        assert_eq!(found(&[("a::b", "a::c"), ("a::c", "a::b")]), ["a::b a::c"]);
        assert_eq!(
            found(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]),
            ["a b c"]
        );
        assert_eq!(found(&[("a", "a::b"), ("a::b", "x"), ("x", "a")]), ["a a::b x"]);
        assert_eq!(found(&[("", "a"), ("a", ""), ("a", "b"), ("b", "a")]), ["a b"]);
    }
}
