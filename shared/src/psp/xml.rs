//! Reading XML that is authentic but not trusted to be sane: bounded, without a DTD, and every problem with its place.
//!
//! An element that is read and stands there twice is refused (two readers would see two truths), and so is text that is
//! broken up by comments. Hyphens and underscores in names are the same: Braintree writes both, its SDKs read both.

use roxmltree::{Document, Node, ParsingOptions};

use super::json::{self, Problem};
use crate::clock::Timestamp;
use crate::money::{Currency, Money};

/// The largest document. A page of fifty transactions has a tenth of it.
const BYTES_MAX: usize = 4 << 20;

/// The most nodes (elements, texts, comments) of a document: what fits into it of Braintree's.
const NODES_MAX: u32 = 200_000;

/// How deep elements may nest. A page of transactions stays below ten.
const DEPTH_MAX: usize = 32;

/// An element and what is in it. Nil (`nil="true"`) counts as absent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'d>(Node<'d, 'd>);

/// Reads a whole document.
pub(super) fn read(bytes: &[u8]) -> Result<Document<'_>, Problem> {
    let problem = |reason| Problem { reason, pointer: String::new() };
    if bytes.len() > BYTES_MAX {
        return Err(problem("XML too large"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| problem("not UTF-8"))?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|_| problem("not XML"))?;
    // Parents stand before their children.
    let mut depths: Vec<usize> = Vec::new();
    for node in document.descendants() {
        let depth = node.parent().and_then(|parent| depths.get(parent.id().get_usize())).map_or(0, |depth| depth + 1);
        if depth > DEPTH_MAX {
            return Err(problem("nested too deep"));
        }
        depths.push(depth);
    }
    Ok(document)
}

impl<'d> Element<'d> {
    /// The document's element, which must have this name.
    pub(super) fn root(document: &'d Document<'d>, name: &str) -> Result<Self, Problem> {
        let root = Self(document.root_element());
        if is_named(root.0, name) { Ok(root) } else { Err(root.problem("another document than was expected")) }
    }

    /// The child of this name, which may be absent but not twice.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Self>, Problem> {
        let mut found = self.0.children().filter(|child| is_named(*child, name));
        let child = found.next().map(Self);
        if let Some(second) = found.next() {
            return Err(Self(second).problem("an element that is there twice"));
        }
        Ok(child.filter(|child| child.0.attribute("nil") != Some("true")))
    }

    pub(super) fn required(&self, name: &str) -> Result<Self, Problem> {
        self.optional(name)?.ok_or_else(|| {
            let Problem { pointer, .. } = self.problem("");
            Problem { reason: "missing", pointer: format!("{pointer}/{}", name.replace('_', "-")) }
        })
    }

    /// The elements in the child, which is a list, whatever they are called; none if it is absent.
    pub(super) fn items(&self, name: &str) -> Result<Vec<Self>, Problem> {
        let Some(list) = self.optional(name)? else { return Ok(Vec::new()) };
        Ok(list.0.children().filter(Node::is_element).map(Self).collect())
    }

    /// All children of this name.
    pub(super) fn children(&self, name: &str) -> Vec<Self> {
        self.0.children().filter(|child| is_named(*child, name)).map(Self).collect()
    }

    /// The text in it, and nothing else in it.
    pub(super) fn text(&self) -> Result<&'d str, Problem> {
        let mut children = self.0.children();
        let Some(child) = children.next() else { return Ok("") };
        match child.text() {
            Some(text) if child.is_text() && children.next().is_none() => Ok(text),
            _ => Err(self.problem("not plain text")),
        }
    }

    /// The text of the child, if that is there and not empty.
    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&'d str>, Problem> {
        let text = self.optional(name)?.map(|child| child.text()).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The text of the child, which must be a name.
    pub(super) fn name(&self, name: &str) -> Result<&'d str, Problem> {
        let child = self.required(name)?;
        let text = child.text()?;
        if json::is_name(text) { Ok(text) } else { Err(child.problem("not a name of 1 to 255 bytes")) }
    }

    /// The text of the child, which may be absent or empty, but if it is there must be a name.
    pub(super) fn optional_name(&self, name: &str) -> Result<Option<&'d str>, Problem> {
        if self.optional_text(name)?.is_some() { self.name(name).map(Some) } else { Ok(None) }
    }

    /// The name at a path of elements, if it is there and is one.
    pub(super) fn name_at<K: AsRef<str>>(&self, path: &[K]) -> Option<&'d str> {
        let at = path.iter().try_fold(*self, |element, name| element.optional(name.as_ref()).ok()?)?;
        at.text().ok().filter(|text| json::is_name(text))
    }

    /// An amount in major units, as decimal text, in the currency beside it.
    pub(super) fn money(&self, amount: &str, currency: &str) -> Result<Money, Problem> {
        let code = self.required(currency)?;
        let currency = Currency::parse(code.text()?).map_err(|_| code.problem("not a currency"))?;
        let amount = self.required(amount)?;
        json::decimal(amount.text()?, currency).map_err(|reason| amount.problem(reason))
    }

    /// A time of RFC 3339.
    pub(super) fn time(&self, name: &str) -> Result<Timestamp, Problem> {
        let child = self.required(name)?;
        Timestamp::parse_rfc3339(child.text()?).map_err(|_| child.problem("not a time of RFC 3339"))
    }

    /// A time of RFC 3339, if it is there.
    pub(super) fn optional_time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        if self.optional_text(name)?.is_some() { self.time(name).map(Some) } else { Ok(None) }
    }

    /// A problem with this element; its place is the path of names to it.
    pub(super) fn problem(&self, reason: &'static str) -> Problem {
        let mut path: Vec<&str> = self.0.ancestors().filter(Node::is_element).map(|node| node.tag_name().name()).collect();
        path.reverse();
        Problem { reason, pointer: json::pointer_to(&path) }
    }
}

fn is_named(node: Node<'_, '_>, name: &str) -> bool {
    let same = |(one, other): (u8, u8)| one == other || (matches!(one, b'-' | b'_') && matches!(other, b'-' | b'_'));
    let own = node.tag_name().name();
    node.is_element() && own.len() == name.len() && own.bytes().zip(name.bytes()).all(same)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(text: &str) -> &'static str {
        read(text.as_bytes()).map_or_else(|problem| problem.reason, |_| "read")
    }

    #[test]
    fn documents_are_bounded_and_have_no_dtd() {
        assert_eq!(reason("<a><b>1</b></a>"), "read");
        assert_eq!(reason("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a/>\n"), "read");
        assert_eq!(reason("<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>"), "not XML");
        assert_eq!(reason("<!DOCTYPE a SYSTEM \"file:///etc/passwd\"><a/>"), "not XML");
        assert_eq!(reason("<a>&x;</a>"), "not XML");
        assert_eq!(reason("<a>"), "not XML");
        assert_eq!(reason("<a/><a/>"), "not XML");
        assert_eq!(reason(""), "not XML");
        assert_eq!(read(b"<a>\xff</a>").unwrap_err().reason, "not UTF-8");
        let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
        assert_eq!(reason(&nested(DEPTH_MAX)), "read");
        assert_eq!(reason(&nested(DEPTH_MAX + 1)), "nested too deep");
        assert_eq!(reason(&nested(100_000)), "nested too deep");
        assert_eq!(reason(&format!("<a>{}</a>", "<b/>".repeat(NODES_MAX as usize))), "not XML");
        assert_eq!(reason(&format!("<a>{}</a>", "x".repeat(BYTES_MAX))), "XML too large");
    }

    #[test]
    fn what_is_read_has_one_meaning() {
        let text = r#"<a><one>1</one><two>1</two><two>2</two><nil nil="true"/><empty/><odd>1<!-- -->2</odd><deep><x/></deep>
            <under_score>u</under_score><cdata><![CDATA[<c>]]></cdata><time>2026-09-21T13:33:10Z</time></a>"#;
        let document = read(text.as_bytes()).unwrap();
        let a = Element::root(&document, "a").unwrap();
        let problem = |name: &str| a.optional_text(name).map_err(|problem| (problem.reason, problem.pointer));
        assert_eq!(problem("one"), Ok(Some("1")));
        assert_eq!(problem("two"), Err(("an element that is there twice", "/a/two".to_owned())));
        assert_eq!(problem("nil"), Ok(None));
        assert_eq!(problem("empty"), Ok(None));
        assert_eq!(problem("gone"), Ok(None));
        assert_eq!(problem("odd"), Err(("not plain text", "/a/odd".to_owned())));
        assert_eq!(problem("deep"), Err(("not plain text", "/a/deep".to_owned())));
        assert_eq!(problem("under-score"), Ok(Some("u")));
        assert_eq!(problem("cdata"), Ok(Some("<c>")));
        assert_eq!(a.time("time").unwrap().to_string(), "2026-09-21T13:33:10Z");
        assert_eq!(a.required("gone").unwrap_err(), Problem { reason: "missing", pointer: "/a/gone".to_owned() });
        assert_eq!(a.name_at(&["deep", "x"]), None);
        assert_eq!(a.name_at(&["one"]), Some("1"));
        assert_eq!(Element::root(&document, "b").unwrap_err().reason, "another document than was expected");
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[<>/a&;!\\[\\]\"= -]{0,80}") {
            let _ = read(&bytes);
            let _ = read(text.as_bytes());
        }
    }
}
