//! Tables for people: columns as wide as their widest cell.

/// The last column is not padded. An empty cell is shown as `-`, so that columns can be cut by white space.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let shown = |cell: &str| if cell.is_empty() { "-".to_owned() } else { cell.to_owned() };
    let header: Vec<String> = header.iter().map(|cell| shown(cell)).collect();
    let rows = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["db".to_owned(), "protected".to_owned()], vec!["mailer".to_owned(), String::new()]];
        assert_eq!(render(&["NAME", "STATE"], &rows), "NAME    STATE\ndb      protected\nmailer  -");
    }
}
