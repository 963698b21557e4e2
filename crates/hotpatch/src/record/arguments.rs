//! What a compiler's command line asks for: as much of it as a recorder must know.

use std::path::{Path, PathBuf};

/// Options whose value is the next argument (gcc's and clang's manuals, "Option Summary").
const WITH_VALUE: [&str; 34] = [
    "-o",
    "-x",
    "-I",
    "-L",
    "-D",
    "-U",
    "-l",
    "-T",
    "-u",
    "-z",
    "-e",
    "-A",
    "-B",
    "-include",
    "-imacros",
    "-isystem",
    "-iquote",
    "-idirafter",
    "-isysroot",
    "-iprefix",
    "-iwithprefix",
    "-iwithprefixbefore",
    "-imultilib",
    "-MF",
    "-MT",
    "-MQ",
    "-Xlinker",
    "-Xassembler",
    "-Xpreprocessor",
    "-Xclang",
    "--param",
    "-aux-info",
    "-target",
    "-wrapper",
];
/// Asked only for what the compiler knows.
const QUESTIONS: [&str; 8] =
    ["--version", "-dumpversion", "-dumpmachine", "-dumpfullversion", "--help", "-###", "-dumpspecs", "-v"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sources to object files.
    Compile,
    /// To a program or shared library, from sources, objects and archives.
    Link,
    /// Preprocess, assembly text, a question: nothing that is recorded.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A source file, which a link compiles first.
    Source(String),
    /// An object, an archive or anything else for the linker.
    Input(String),
    /// `-lNAME`.
    Library(String),
    /// An option, with its value if that is an argument of its own.
    Option(Vec<String>),
    Output(String),
}

#[derive(Debug)]
pub struct CommandLine {
    pub mode: Mode,
    pub arguments: Vec<Argument>,
    /// The language is forced or read from standard input: cannot be split.
    pub is_odd: bool,
}

pub fn is_source(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["c", "cc", "cpp", "cxx", "C", "c++", "i", "ii", "s", "S", "sx"].contains(&extension)
}

impl CommandLine {
    pub fn parse(words: &[String]) -> Self {
        let mut arguments = Vec::new();
        let mut mode = Mode::Link;
        let mut is_odd = false;
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-c" => {
                    if mode == Mode::Link {
                        mode = Mode::Compile;
                    }
                    continue;
                }
                "-S" | "-E" | "-M" | "-MM" | "-fsyntax-only" | "-r" => mode = Mode::Other,
                "-" | "-x" => is_odd = true,
                _ => {}
            }
            if QUESTIONS.contains(&word.as_str()) && word != "-v" || word.starts_with("-print-") {
                mode = Mode::Other;
            }
            if word == "-o" || (word.starts_with("-o") && word.len() > 2 && !word.starts_with("-object")) {
                let value = if word == "-o" {
                    words.next().cloned().unwrap_or_default()
                } else {
                    word[2..].to_owned()
                };
                arguments.push(Argument::Output(value));
            } else if word == "-l" || (word.starts_with("-l") && word.len() > 2) {
                let value = if word == "-l" {
                    words.next().cloned().unwrap_or_default()
                } else {
                    word[2..].to_owned()
                };
                arguments.push(Argument::Library(value));
            } else if WITH_VALUE.contains(&word.as_str()) {
                let mut both = vec![word.clone()];
                both.extend(words.next().cloned());
                arguments.push(Argument::Option(both));
            } else if word.starts_with('-') && word != "-" {
                arguments.push(Argument::Option(vec![word.clone()]));
            } else if is_source(word) {
                arguments.push(Argument::Source(word.clone()));
            } else {
                arguments.push(Argument::Input(word.clone()));
            }
        }
        let has_input =
            arguments.iter().any(|argument| matches!(argument, Argument::Source(_) | Argument::Input(_)));
        if !has_input {
            mode = Mode::Other;
        }
        Self { mode, arguments, is_odd }
    }

    pub fn output(&self) -> Option<&str> {
        self.arguments.iter().rev().find_map(|argument| match argument {
            Argument::Output(path) => Some(path.as_str()),
            _ => None,
        })
    }

    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.arguments
            .iter()
            .flat_map(|argument| match argument {
                Argument::Option(words) => words.as_slice(),
                _ => &[],
            })
            .map(String::as_str)
    }

    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().filter_map(|argument| match argument {
            Argument::Source(path) => Some(path.as_str()),
            _ => None,
        })
    }

    /// Where libraries are looked for before the system's places.
    pub fn library_folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for argument in &self.arguments {
            if let Argument::Option(words) = argument {
                match words.as_slice() {
                    [option, folder] if option == "-L" => folders.push(PathBuf::from(folder)),
                    [option] if option.starts_with("-L") => folders.push(PathBuf::from(&option[2..])),
                    _ => {}
                }
            }
        }
        folders
    }

    /// The options of a compilation that is part of a link: without what is only for the linker.
    pub fn compile_options(&self) -> impl Iterator<Item = &String> {
        self.arguments.iter().flat_map(|argument| match argument {
            Argument::Option(words) if !is_for_linker(&words[0]) => words.as_slice(),
            _ => &[],
        })
    }
}

fn is_for_linker(option: &str) -> bool {
    let starts = ["-Wl,", "-L", "-Xlinker", "-T", "-u", "-z", "-e"];
    let whole = ["-shared", "-static", "-rdynamic", "-s", "-nostdlib", "-nostartfiles", "-pie", "-no-pie"];
    starts.iter().any(|start| option.starts_with(start)) || whole.contains(&option)
}

/// Arguments, with those from response files (`@FILE`) in their place.
pub fn expand(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut all = Vec::new();
    for word in words {
        match word.strip_prefix('@').and_then(|path| std::fs::read_to_string(path).ok()) {
            Some(text) => all.extend(split(&text)),
            None => all.push(word),
        }
    }
    all
}

/// As gcc reads a response file: white space separates, quotes and backslashes keep together.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) => word.get_or_insert_default().extend(characters.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_asked_is_understood() {
        let line = parse("-O2 -c -I inc -DX=1 a.c -o out/a.o -MF a.d");
        assert_eq!(line.mode, Mode::Compile);
        assert_eq!(line.output(), Some("out/a.o"));
        assert_eq!(line.sources().collect::<Vec<_>>(), ["a.c"]);
        let line = parse("-o prog a.o b.c -L. -L sub -lfoo -l bar -Wl,-E -static");
        assert_eq!(line.mode, Mode::Link);
        assert_eq!(line.library_folders(), [Path::new("."), Path::new("sub")]);
        assert!(line.arguments.contains(&Argument::Library("bar".to_owned())));
        assert_eq!(line.compile_options().count(), 0);
        for other in ["--version", "-E x.c", "-S x.c", "-print-prog-name=ld", "-v", "-M x.c"] {
            assert_eq!(parse(other).mode, Mode::Other, "{other}");
        }
        assert!(parse("-x c -").is_odd);
    }

    #[test]
    fn response_files_are_split_as_the_compiler_does() {
        assert_eq!(
            split("a \"b c\" 'd\"e'  f\\ g\n\n-DX=\\\"y\\\""),
            ["a", "b c", "d\"e", "f g", "-DX=\"y\""]
        );
    }
}
