//! A listing as HTML and as JSON.
//!
//! The page needs no script and loads nothing: sorting and paging are links. All of them are relative, so that they hold
//! behind a `strip_prefix`, and with a proxy in front that adds one. Names are percent-encoded in links and escaped in text.

use std::fmt::{self, Display, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use super::{Entry, Folder, Kind, Order, Page, REACH, Sort, View};
use crate::http::path;

const STYLE: &str = "\
:root{color-scheme:light dark;font:1rem/1.5 system-ui,sans-serif}\
body{max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.25rem;overflow-wrap:anywhere}\
table{width:100%;border-collapse:collapse}\
th,td{padding:.25rem .5rem;text-align:left;border-bottom:1px solid #8884}\
td:first-child{overflow-wrap:anywhere}\
th+th,td+td{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
@media(max-width:30rem){\
tr{display:flex;flex-wrap:wrap;justify-content:space-between;border-bottom:1px solid #8884}\
th,td{border:0}\
td:first-child{flex-basis:100%;padding-bottom:0}\
td+td{padding-top:0;font-size:.875rem}}\
a{text-decoration:none}\
a:hover,a:focus-visible{text-decoration:underline}\
[aria-sort=ascending] a::after{content:' \\2191'}\
[aria-sort=descending] a::after{content:' \\2193'}";

pub fn html(folder: &Folder, view: &View, page: &Page) -> String {
    let mut out = String::new();
    // a String takes whatever is written
    let _ = write_html(&mut out, folder, view, page);
    out
}

fn write_html(out: &mut String, folder: &Folder, view: &View, page: &Page) -> fmt::Result {
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Index of {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        Escaped(&folder.url)
    )?;
    write_path(out, folder)?;
    out.push_str("<table>\n<thead>\n<tr>");
    for (sort, title) in [
        (Sort::Name, "Name"),
        (Sort::Size, "Size"),
        (Sort::Time, "Modified (UTC)"),
    ] {
        write_heading(out, view, sort, title)?;
    }
    out.push_str("</tr>\n</thead>\n<tbody>\n");
    if !folder.relative.is_empty() {
        out.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    for entry in &page.entries {
        write_entry(out, entry)?;
    }
    out.push_str("</tbody>\n</table>\n");
    write_pages(out, view, page)?;
    out.push_str("</body>\n</html>\n");
    Ok(())
}

/// The way to the folder, each step of which is a link as long as it is below the root.
fn write_path(out: &mut String, folder: &Folder) -> fmt::Result {
    let depth = folder.relative.matches('/').count();
    let steps = folder.url.matches('/').count();
    out.push_str("<h1><nav aria-label=\"Path\">");
    for (i, step) in folder.url.split_inclusive('/').enumerate() {
        let up = steps - 1 - i;
        let step = Escaped(step);
        match up {
            0 => write!(out, "<span aria-current=\"page\">{step}</span>")?,
            up if up <= depth => write!(out, "<a href=\"{}\">{step}</a>", "../".repeat(up))?,
            _ => write!(out, "{step}")?,
        }
    }
    out.push_str("</nav></h1>\n");
    Ok(())
}

fn write_heading(out: &mut String, view: &View, sort: Sort, title: &str) -> fmt::Result {
    let (state, order) = match (view.sort == sort, view.order) {
        (false, _) => ("", Order::Ascending),
        (true, Order::Ascending) => (" aria-sort=\"ascending\"", Order::Descending),
        (true, Order::Descending) => (" aria-sort=\"descending\"", Order::Ascending),
    };
    let query = Query {
        sort,
        order,
        page: 1,
    };
    write!(
        out,
        "<th scope=\"col\"{state}><a href=\"{query}\">{title}</a></th>"
    )
}

fn write_entry(out: &mut String, entry: &Entry) -> fmt::Result {
    let slash = match entry.kind {
        Kind::Folder => "/",
        Kind::File => "",
    };
    // `./`, for a colon in the name would make a scheme of what stands before it
    let link = format!("./{}{slash}", path::encode(&entry.name));
    let (link, name) = (Escaped(&link), Escaped(&entry.name));
    write!(out, "<tr><td><a href=\"{link}\">{name}{slash}</a></td><td>")?;
    if let Some(size) = entry.size {
        write!(out, "<data value=\"{size}\">{}</data>", Bytes(size))?;
    }
    out.push_str("</td><td>");
    if let Some(time) = time(entry.modified) {
        let exact = time.to_rfc3339_opts(SecondsFormat::Secs, true);
        let short = time.format("%Y-%m-%d %H:%M");
        write!(out, "<time datetime=\"{exact}\">{short}</time>")?;
    }
    out.push_str("</td></tr>\n");
    Ok(())
}

fn write_pages(out: &mut String, view: &View, page: &Page) -> fmt::Result {
    let (number, count, total) = (view.page, page.count(), page.total);
    if count > 1 {
        let query = |page| Query {
            sort: view.sort,
            order: view.order,
            page,
        };
        out.push_str("<nav aria-label=\"Pages\">");
        if number > 1 {
            let query = query(number - 1);
            write!(out, "<a rel=\"prev\" href=\"{query}\">Previous</a> ")?;
        }
        write!(out, "Page {number} of {count}")?;
        if number < count {
            let query = query(number + 1);
            write!(out, " <a rel=\"next\" href=\"{query}\">Next</a>")?;
        }
        out.push_str("</nav>\n");
    }
    write!(
        out,
        "<p>{total} {}",
        if total == 1 { "entry" } else { "entries" }
    )?;
    if total > REACH {
        write!(
            out,
            ", of which {REACH} can be paged to; the opposite order begins with the others"
        )?;
    }
    out.push_str("</p>\n");
    Ok(())
}

pub fn json(folder: &Folder, view: &View, page: &Page) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        path: &'a str,
        page: usize,
        pages: usize,
        total: usize,
        entries: &'a [Entry],
    }
    let document = Document {
        path: &folder.url,
        page: view.page,
        pages: page.count(),
        total: page.total,
        entries: &page.entries,
    };
    // strings, numbers and lists of them: there is nothing in it that JSON cannot say
    let mut out = serde_json::to_string(&document).unwrap_or_default();
    out.push('\n');
    out
}

/// `2026-11-22T15:43:45Z`; nothing for a time that cannot be written so.
pub fn timestamp<S: Serializer>(modified: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    let text = time(*modified).map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true));
    text.serialize(serializer)
}

fn time(modified: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(modified, 0)
}

/// A query as it stands in an attribute.
struct Query {
    sort: Sort,
    order: Order,
    page: usize,
}

impl Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sort = match self.sort {
            Sort::Name => "name",
            Sort::Size => "size",
            Sort::Time => "time",
        };
        let order = match self.order {
            Order::Ascending => "asc",
            Order::Descending => "desc",
        };
        write!(f, "?sort={sort}&amp;order={order}")?;
        match self.page {
            1 => Ok(()),
            page => write!(f, "&amp;page={page}"),
        }
    }
}

/// A size for people: `1.5 KiB`.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut tenths = u128::from(self.0) * 10 / 1024;
        let mut unit = 0;
        while tenths >= 10_240 {
            tenths /= 1024;
            unit += 1;
        }
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Text in HTML, between tags and in quoted attributes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Format;
    use super::*;

    fn folder(relative: &str, url: &str) -> Folder {
        Folder {
            relative: relative.to_owned(),
            url: url.to_owned(),
            hidden: false,
        }
    }

    fn view() -> View {
        View {
            sort: Sort::Name,
            order: Order::Ascending,
            page: 1,
            format: Format::Html,
        }
    }

    fn file(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            kind: Kind::File,
            size: Some(1536),
            modified: 784_111_777,
        }
    }

    fn page(entries: Vec<Entry>) -> Page {
        let total = entries.len();
        Page { entries, total }
    }

    #[test]
    fn names_are_encoded_in_links_and_escaped_in_text() {
        let page = page(vec![
            file("<b>&\"'.txt"),
            file("javascript:alert(1)"),
            file("a b%?#ü\n"),
        ]);
        let html = html(&folder("", "/<i>/"), &view(), &page);
        for expected in [
            "<title>Index of /&lt;i&gt;/</title>",
            "<a href=\"./%3Cb%3E&amp;%22&#39;.txt\">&lt;b&gt;&amp;&quot;&#39;.txt</a>",
            "<a href=\"./javascript:alert(1)\">",
            "<a href=\"./a%20b%25%3F%23%C3%BC%0A\">",
            "<data value=\"1536\">1.5 KiB</data>",
            "<time datetime=\"1994-11-06T08:49:37Z\">1994-11-06 08:49</time>",
            "<p>3 entries</p>",
        ] {
            assert!(html.contains(expected), "{expected}: {html}");
        }
    }

    #[test]
    fn each_step_of_the_path_is_a_link_up_to_the_root() {
        let html = html(&folder("a/b/", "/files/a/b/"), &view(), &page(vec![]));
        let path = "<nav aria-label=\"Path\">/<a href=\"../../\">files/</a><a href=\"../\">a/</a>\
                    <span aria-current=\"page\">b/</span></nav>";
        assert!(html.contains(path), "{html}");
        assert!(html.contains("<a href=\"../\">../</a>"));
        let html = super::html(&folder("", "/"), &view(), &page(vec![]));
        assert!(
            html.contains("<nav aria-label=\"Path\"><span aria-current=\"page\">/</span></nav>")
        );
        assert!(!html.contains("\"../\""));
    }

    #[test]
    fn headings_turn_the_order_and_pages_keep_it() {
        let mut view = view();
        (view.sort, view.order, view.page) = (Sort::Size, Order::Descending, 2);
        let mut page = page(vec![file("a")]);
        page.total = 2001;
        let html = html(&folder("", "/"), &view, &page);
        for expected in [
            "<th scope=\"col\"><a href=\"?sort=name&amp;order=asc\">Name</a>",
            "<th scope=\"col\" aria-sort=\"descending\"><a href=\"?sort=size&amp;order=asc\">Size</a>",
            "<a rel=\"prev\" href=\"?sort=size&amp;order=desc\">Previous</a> Page 2 of 3 \
             <a rel=\"next\" href=\"?sort=size&amp;order=desc&amp;page=3\">Next</a>",
        ] {
            assert!(html.contains(expected), "{expected}: {html}");
        }
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let mut entries = vec![file("a\"<\n")];
        entries.push(Entry {
            name: "sub".to_owned(),
            kind: Kind::Folder,
            size: None,
            modified: i64::MAX,
        });
        let json = json(&folder("x/", "/f/x/"), &view(), &page(entries));
        assert_eq!(
            json,
            "{\"path\":\"/f/x/\",\"page\":1,\"pages\":1,\"total\":2,\"entries\":[\
             {\"name\":\"a\\\"<\\n\",\"type\":\"file\",\"size\":1536,\"modified\":\"1994-11-06T08:49:37Z\"},\
             {\"name\":\"sub\",\"type\":\"folder\",\"size\":null,\"modified\":null}]}\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_markup(name in "\\PC{0,30}") {
            let escaped = Escaped(&name).to_string();
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']));
            let link = path::encode(&name).to_string();
            prop_assert!(!link.contains(['<', '>', '"']));
        }
    }
}
