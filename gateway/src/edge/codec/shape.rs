//! What messages are made of, as their descriptors say, and how much of it one may have: counted before
//! anything is unpacked, for every field that there is.

use crate::intake::Bounds;
use crate::score::ScoreError;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fields whose elements become rows; `intake.documents_max` bounds them.
const ROWS: [&str; 3] = ["documents", "pairs", "texts"];
/// What names a message on a stream.
const ID: &str = "id";
/// The longest such name, in bytes.
const ID_BYTES_MAX: usize = 128;
/// Elements beside two for each row (a query and a document), of all other lists and maps together.
const ELEMENTS_MAX: usize = 64;
/// Numbers of all lists of numbers together: token ids, shapes.
const NUMBERS_MAX: usize = 65_536;
/// Messages inside one another; ours have four.
const DEPTH_MAX: usize = 8;

/// Every message of the descriptors, and what each method takes.
#[derive(Clone)]
pub(in crate::edge) struct Shapes(Arc<Known>);

struct Known {
    messages: Vec<Vec<Field>>,
    /// By the method's path: the message's place.
    methods: BTreeMap<String, usize>,
}

/// What one method takes.
#[derive(Clone)]
pub(in crate::edge) struct Shape {
    known: Arc<Known>,
    message: usize,
}

struct Field {
    number: u32,
    name: String,
    is_repeated: bool,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Text or bytes.
    Text,
    /// By its place.
    Message(usize),
    /// Of variable length.
    Varint,
    /// Of so many bytes.
    Fixed(usize),
}

/// What has been counted.
#[derive(Default)]
struct Tally<'a> {
    rows: Count<'a>,
    elements: Count<'a>,
    numbers: Count<'a>,
}

/// How many elements there are of the fields of each name.
#[derive(Default)]
struct Count<'a>(BTreeMap<&'a str, usize>);

// === impl Shapes ===

impl Shapes {
    /// # Errors
    /// What is no set of descriptors.
    pub(in crate::edge) fn read(descriptors: &[u8]) -> Result<Self, prost::DecodeError> {
        let files = FileDescriptorSet::decode(descriptors)?;
        let mut named = Vec::new();
        for file in &files.file {
            let package = format!(".{}", file.package());
            name_all(&package, &file.message_type, &mut named);
        }
        let places: BTreeMap<&str, usize> = named
            .iter()
            .enumerate()
            .map(|(place, (name, _))| (name.as_str(), place))
            .collect();
        let messages = named.iter().map(|(_, message)| {
            let fields = message.field.iter();
            fields.map(|field| Field::of(field, &places)).collect()
        });
        let messages = messages.collect();
        let mut methods = BTreeMap::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service, name) = (file.package(), service.name(), method.name());
                    if let Some(&place) = places.get(method.input_type()) {
                        methods.insert(format!("/{package}.{service}/{name}"), place);
                    }
                }
            }
        }
        Ok(Self(Arc::new(Known { messages, methods })))
    }

    /// What the method at this path takes.
    ///
    /// # Errors
    /// That the descriptors have no such method.
    pub(in crate::edge) fn of(&self, path: &str) -> Result<Shape, String> {
        let message = self.0.methods.get(path);
        let message = message.ok_or_else(|| format!("{path} is not described"))?;
        Ok(Shape {
            known: Arc::clone(&self.0),
            message: *message,
        })
    }
}

fn name_all<'a>(
    scope: &str,
    messages: &'a [DescriptorProto],
    named: &mut Vec<(String, &'a DescriptorProto)>,
) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        name_all(&name, &message.nested_type, named);
        named.push((name, message));
    }
}

// === impl Field ===

impl Field {
    fn of(field: &FieldDescriptorProto, places: &BTreeMap<&str, usize>) -> Self {
        let kind = match field.r#type() {
            Type::String | Type::Bytes | Type::Group => Kind::Text,
            // One that is not described is not looked into.
            Type::Message => places
                .get(field.type_name())
                .map_or(Kind::Text, |&place| Kind::Message(place)),
            Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Fixed(8),
            Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Fixed(4),
            Type::Int64
            | Type::Uint64
            | Type::Int32
            | Type::Uint32
            | Type::Bool
            | Type::Enum
            | Type::Sint32
            | Type::Sint64 => Kind::Varint,
        };
        Self {
            number: field.number().unsigned_abs(),
            name: field.name().to_owned(),
            is_repeated: field.label() == Label::Repeated,
            kind,
        }
    }
}

// === impl Shape ===

impl Shape {
    /// Whether a message has no more of anything than it may. Stops where it makes no sense: to say so is
    /// for its reader.
    ///
    /// # Errors
    /// `TooLarge`, naming the field.
    pub(in crate::edge) fn check(&self, bounds: &Bounds, message: &[u8]) -> Result<(), ScoreError> {
        let mut tally = Tally::default();
        self.count(self.message, message, 0, &mut tally);
        let (n_rows, name) = tally.rows.all();
        bounds
            .check_count(n_rows)
            .map_err(|error| named(error, name))?;
        let elements_max = bounds.documents_max.saturating_mul(2) + ELEMENTS_MAX;
        for (count, max) in [(tally.elements, elements_max), (tally.numbers, NUMBERS_MAX)] {
            let (found, name) = count.all();
            if max < found {
                let why = format!(
                    "{found} elements of lists are more than {max}, the most in one message"
                );
                return Err(ScoreError::TooLarge {
                    param: name.to_owned(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// The client's name for the message: the last, as it would be unpacked. Empty where there is none.
    pub(in crate::edge) fn id(&self, mut message: &[u8]) -> String {
        let fields = &self.known.messages[self.message];
        let Some(id) = fields.iter().find(|field| field.name == ID) else {
            return String::new();
        };
        let mut found = &[][..];
        while let Some((tag, piece)) = next(&mut message) {
            if tag == id.number
                && let Piece::Bytes(bytes) = piece
            {
                found = bytes;
            }
        }
        let found = &found[..found.len().min(ID_BYTES_MAX)];
        String::from_utf8_lossy(found).into_owned()
    }

    fn count<'a>(&'a self, place: usize, mut message: &[u8], depth: usize, tally: &mut Tally<'a>) {
        if depth == DEPTH_MAX {
            return;
        }
        let fields = &self.known.messages[place];
        while let Some((tag, piece)) = next(&mut message) {
            let Some(field) = fields.iter().find(|field| field.number == tag) else {
                continue;
            };
            if field.is_repeated {
                tally.add(field, &piece);
            }
            if let (Kind::Message(place), Piece::Bytes(inner)) = (field.kind, piece) {
                self.count(place, inner, depth + 1, tally);
            }
        }
    }
}

// === impl Tally ===

impl<'a> Tally<'a> {
    fn add(&mut self, field: &'a Field, piece: &Piece<'_>) {
        let (counted, n) = match (field.kind, piece) {
            (Kind::Text | Kind::Message(_), _) if ROWS.contains(&field.name.as_str()) => {
                (&mut self.rows, 1)
            }
            (Kind::Text | Kind::Message(_), _) => (&mut self.elements, 1),
            (Kind::Varint, Piece::Bytes(packed)) => {
                let ends = packed.iter().filter(|&&byte| byte < 0x80);
                (&mut self.numbers, ends.count())
            }
            (Kind::Fixed(bytes), Piece::Bytes(packed)) => (&mut self.numbers, packed.len() / bytes),
            (Kind::Varint | Kind::Fixed(_), Piece::Number) => (&mut self.numbers, 1),
        };
        *counted.0.entry(&field.name).or_default() += n;
    }
}

// === impl Count ===

impl<'a> Count<'a> {
    /// All of them, and the name of which there are most.
    fn all(&self) -> (usize, &'a str) {
        let most = self.0.iter().max_by_key(|(_, n)| **n);
        (self.0.values().sum(), most.map_or("", |(name, _)| name))
    }
}

/// A field's value.
enum Piece<'a> {
    Bytes(&'a [u8]),
    Number,
}

/// The next field and its value; `None` at the end, and where the message makes no sense.
fn next<'a>(message: &mut &'a [u8]) -> Option<(u32, Piece<'a>)> {
    if message.is_empty() {
        return None;
    }
    let (tag, wire_type) = decode_key(message).ok()?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, tag, message, DecodeContext::default()).ok()?;
        return Some((tag, Piece::Number));
    }
    let length = usize::try_from(decode_varint(message).ok()?).ok()?;
    let (bytes, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some((tag, Piece::Bytes(bytes)))
}

/// The bound is on rows, whatever they are called.
fn named(error: ScoreError, name: &str) -> ScoreError {
    match error {
        ScoreError::TooLarge { why, .. } => ScoreError::TooLarge {
            param: name.to_owned(),
            why,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Priority;

    const BOUNDS: Bounds = Bounds {
        body_bytes_max: 1 << 20,
        bytes_max: 1 << 20,
        requests_max: 1,
        documents_max: 4,
        document_bytes_max: 1 << 20,
        query_bytes_max: 1 << 20,
        priority_max: Priority::High,
    };
    const STREAM: &str = "/crossgate.v1.Scoring/ScoreStream";
    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

    fn shapes() -> Shapes {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/crossgate_descriptor.bin"));
        Shapes::read(bytes).expect("descriptors")
    }

    /// A field of bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let head = [
            number << 3 | 2,
            u8::try_from(bytes.len()).expect("a short field"),
        ];
        [&head, bytes].concat()
    }

    #[track_caller]
    fn check(path: &str, message: &[u8], wanted: Result<(), &str>) {
        let shape = shapes().of(path).expect("a method");
        let found = shape
            .check(&BOUNDS, message)
            .map_err(|error| error.to_string());
        match (found, wanted) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(wanted)) => assert!(found.starts_with(wanted), "{found}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_are_counted_wherever_they_stand() {
        let documents = |n: usize| field(3, b"").repeat(n);
        let score = "/crossgate.v1.Scoring/Score";
        check(score, &documents(4), Ok(()));
        check(
            score,
            &documents(5),
            Err("documents: 5 documents are more than"),
        );
        // What comes in two halves is put together.
        let half = field(2, &documents(3));
        check(STREAM, &half, Ok(()));
        check(
            STREAM,
            &[half.clone(), half].concat(),
            Err("documents: 6 documents"),
        );
        check(
            "/tei.v1.Rerank/Rerank",
            &field(2, b"").repeat(5),
            Err("texts: 5 documents"),
        );
        let pairs = field(6, &field(1, b"q")).repeat(5);
        check(score, &pairs, Err("pairs: 5 documents"));
    }

    #[test]
    fn other_lists_have_bounds_of_their_own() {
        let most = 2 * BOUNDS.documents_max + ELEMENTS_MAX;
        // Two tensors, whose elements are counted together.
        let tensors = |n: usize| {
            let elements = field(8, b"").repeat(n / 2);
            field(5, &field(5, &elements)).repeat(2)
        };
        check(INFER, &tensors(most - 2), Ok(()));
        check(
            INFER,
            &tensors(most),
            Err("bytes_contents: 74 elements of lists"),
        );
        check(
            INFER,
            &field(4, b"").repeat(most + 1),
            Err("parameters: 73 elements"),
        );
        // What there is most of is to blame, and not what comes last.
        let last = [field(4, b"").repeat(most), tensors(2)].concat();
        check(INFER, &last, Err("parameters: 76 elements"));
        let packed = vec![1; NUMBERS_MAX + 1];
        let length = [0x81, 0x80, 0x04];
        let ids = [&[1 << 3 | 2], &length[..], &packed].concat();
        check(
            "/tei.v1.Tokenize/Decode",
            &ids,
            Err("ids: 65537 elements of lists"),
        );
        let one_by_one = [1 << 3, 7].repeat(NUMBERS_MAX + 1);
        check(
            "/tei.v1.Tokenize/Decode",
            &one_by_one,
            Err("ids: 65537 elements"),
        );
    }

    #[test]
    fn names_of_what_cannot_be_unpacked() {
        let shape = shapes().of(STREAM).expect("a method");
        let message = [field(1, b"first"), field(1, b"name"), vec![0xff, 0xff]].concat();
        assert_eq!(shape.id(&message), "name");
        assert_eq!(shape.id(&field(1, &[b'x'; 127])).len(), 127);
        assert_eq!(
            shapes().of(INFER).expect("a method").id(&field(3, b"7")),
            "7"
        );
        assert!(shapes().of("/crossgate.v1.Scoring/None").is_err());
    }

    #[test]
    fn whatever_comes_is_counted_without_a_panic() {
        let shapes = shapes();
        let mut state = 1_u64;
        for round in 0..20_000 {
            let bytes: Vec<u8> = (0..round % 40)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    // Small numbers are keys and lengths that make sense.
                    (state >> 56) as u8 % [8, 64, 255][round % 3]
                })
                .collect();
            for path in [STREAM, INFER] {
                let shape = shapes.of(path).expect("a method");
                _ = shape.check(&BOUNDS, &bytes);
                _ = shape.id(&bytes);
            }
        }
    }
}
