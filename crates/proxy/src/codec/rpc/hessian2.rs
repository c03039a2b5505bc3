//! Hessian 2, as far as a proxy needs it: read texts, and find the end of anything.
//!
//! Source: "Hessian 2.0 Serialization Protocol" (hessian.caucho.com/doc/hessian-serialization.html), whose bytecode map (its section 7) is the
//! order of [`Reader::skip`]; where Dubbo's `hessian-lite` differs from it, that is said at the place.
//!
//! Foreign bytes decide nothing here but how far to read: nesting is bounded, and nothing is allocated by a length that was only announced.

use std::borrow::Cow;

/// Not hessian, or cut off, or nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Nested deeper than this, a value is an attack: each level is a call of [`Reader::skip`].
const MOST_NESTED: u32 = 128;
/// Definitions of classes in one message. An object names its class by a number, so they must be remembered.
const MOST_CLASSES: usize = 4096;

/// Reads one message's content from the beginning.
pub struct Reader<'m> {
    bytes: &'m [u8],
    /// For each class that was defined, how many fields its objects have.
    classes: Vec<usize>,
    nested: u32,
}

impl<'m> Reader<'m> {
    pub fn new(bytes: &'m [u8]) -> Reader<'m> {
        Reader { bytes, classes: Vec::new(), nested: 0 }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'m [u8] {
        self.bytes
    }

    fn peek(&self) -> Result<u8, Broken> {
        self.bytes.first().copied().ok_or(Broken)
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        let (&byte, rest) = self.bytes.split_first().ok_or(Broken)?;
        self.bytes = rest;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Result<&'m [u8], Broken> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Broken)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn big_endian<const N: usize>(&mut self) -> Result<i32, Broken> {
        let mut wide = [0; 4];
        wide[4 - N..].copy_from_slice(self.take(N)?);
        Ok(i32::from_be_bytes(wide))
    }

    /// Read a text, or null as the empty text. Its bytes are UTF-8, but for code points beyond the first plane, which Java's encoders
    /// write as two surrogates of three bytes each (CESU-8).
    pub fn text(&mut self) -> Result<Cow<'m, [u8]>, Broken> {
        Ok(self.optional_text()?.unwrap_or_default())
    }

    /// Read a text, or null.
    pub fn optional_text(&mut self) -> Result<Option<Cow<'m, [u8]>>, Broken> {
        if self.peek()? == b'N' {
            self.byte()?;
            return Ok(None);
        }
        let mut whole: Cow<'m, [u8]> = Cow::Borrowed(&[]);
        loop {
            let (units, last) = match self.byte()? {
                // Up to 31 characters.
                tag @ 0x00..=0x1f => (usize::from(tag), true),
                // Up to 1023.
                tag @ 0x30..=0x33 => (usize::from(tag - 0x30) << 8 | usize::from(self.byte()?), true),
                b'S' => (self.big_endian::<2>()? as usize, true),
                // A part that more follow.
                b'R' => (self.big_endian::<2>()? as usize, false),
                _ => return Err(Broken),
            };
            let part = self.characters(units)?;
            if whole.is_empty() {
                whole = Cow::Borrowed(part);
            } else {
                whole.to_mut().extend_from_slice(part);
            }
            if last {
                return Ok(Some(whole));
            }
        }
    }

    /// The bytes of so many units of UTF-16.
    fn characters(&mut self, units: usize) -> Result<&'m [u8], Broken> {
        let all = self.bytes;
        let (mut at, mut left) = (0, units);
        while left > 0 {
            let (bytes, worth) = match *all.get(at).ok_or(Broken)? {
                0x00..=0x7f => (1, 1),
                0xc0..=0xdf => (2, 1),
                0xe0..=0xef => (3, 1),
                // Real UTF-8, as encoders in other languages write it; Java counts it as the two units that it becomes.
                0xf0..=0xf7 => (4, 2.min(left)),
                _ => return Err(Broken),
            };
            at += bytes;
            left -= worth;
        }
        self.take(at)
    }

    /// Read a number of up to 32 bits.
    pub fn int(&mut self) -> Result<i32, Broken> {
        let tag = self.byte()?;
        Ok(match tag {
            0x80..=0xbf => i32::from(tag) - 0x90,
            0xc0..=0xcf => (i32::from(tag) - 0xc8) << 8 | i32::from(self.byte()?),
            0xd0..=0xd7 => (i32::from(tag) - 0xd4) << 16 | self.big_endian::<2>()?,
            b'I' => self.big_endian::<4>()?,
            _ => return Err(Broken),
        })
    }

    /// A number that stands for how many things follow.
    fn count(&mut self) -> Result<usize, Broken> {
        usize::try_from(self.int()?).map_err(|_| Broken)
    }

    /// Whether a text comes next.
    pub fn is_text(&self) -> bool {
        matches!(self.bytes.first(), Some(0x00..=0x1f | 0x30..=0x33 | b'R' | b'S'))
    }

    /// Read past one value, whatever it is.
    pub fn skip(&mut self) -> Result<(), Broken> {
        self.nested += 1;
        if self.nested > MOST_NESTED {
            return Err(Broken);
        }
        let result = self.skip_value();
        self.nested -= 1;
        result
    }

    fn skip_value(&mut self) -> Result<(), Broken> {
        let tag = self.peek()?;
        match tag {
            0x00..=0x1f | 0x30..=0x33 | b'R' | b'S' => return self.text().map(drop),
            0x80..=0xd7 | b'I' => return self.int().map(drop),
            _ => self.byte()?,
        };
        match tag {
            // Bytes: up to 15, up to 1023, parts, the last part.
            0x20..=0x2f => self.take(usize::from(tag - 0x20)).map(drop),
            0x34..=0x37 => {
                let count = usize::from(tag - 0x34) << 8 | usize::from(self.byte()?);
                self.take(count).map(drop)
            }
            b'A' | b'B' => {
                let count = self.big_endian::<2>()? as usize;
                self.take(count)?;
                // After a part another one must come, and nothing else.
                match (tag, self.bytes.first()) {
                    (b'A', Some(b'A' | b'B' | 0x20..=0x2f | 0x34..=0x37)) => self.skip_bytes(),
                    (b'A', _) => Err(Broken),
                    _ => Ok(()),
                }
            }
            // A class, and then an object of it or another value: definitions stand before what needs them.
            b'C' => {
                self.text()?;
                let fields = self.count()?;
                if self.classes.len() == MOST_CLASSES {
                    return Err(Broken);
                }
                for _ in 0..fields {
                    self.text()?;
                }
                self.classes.push(fields);
                self.skip()
            }
            b'O' => {
                let class = self.count()?;
                self.skip_fields(class)
            }
            0x60..=0x6f => self.skip_fields(usize::from(tag - 0x60)),
            // Doubles: 0, 1, of one byte, of two, in thousandths, whole.
            0x5b | 0x5c => Ok(()),
            0x5d => self.take(1).map(drop),
            0x5e => self.take(2).map(drop),
            0x5f => self.take(4).map(drop),
            b'D' => self.take(8).map(drop),
            b'F' | b'T' | b'N' => Ok(()),
            // Maps, with a type and without.
            b'M' => {
                self.skip_type()?;
                self.skip_until_end()
            }
            b'H' => self.skip_until_end(),
            // A reference to something before.
            b'Q' => self.int().map(drop),
            // Dates: milliseconds, minutes.
            0x4a => self.take(8).map(drop),
            0x4b => self.take(4).map(drop),
            // Long: of one byte to three, of four, of eight.
            0xd8..=0xef => Ok(()),
            0xf0..=0xff => self.take(1).map(drop),
            0x38..=0x3f => self.take(2).map(drop),
            0x59 => self.take(4).map(drop),
            b'L' => self.take(8).map(drop),
            // Lists: with a type and open, with a type and a length, open, with a length, short ones.
            0x55 => {
                self.skip_type()?;
                self.skip_until_end()
            }
            b'V' => {
                self.skip_type()?;
                let count = self.count()?;
                self.skip_values(count)
            }
            0x57 => self.skip_until_end(),
            0x58 => {
                let count = self.count()?;
                self.skip_values(count)
            }
            0x70..=0x77 => {
                self.skip_type()?;
                self.skip_values(usize::from(tag - 0x70))
            }
            0x78..=0x7f => self.skip_values(usize::from(tag - 0x78)),
            _ => Err(Broken),
        }
    }

    /// Parts of bytes are read in a loop: a long array has thousands.
    fn skip_bytes(&mut self) -> Result<(), Broken> {
        loop {
            let tag = self.byte()?;
            let count = match tag {
                0x20..=0x2f => usize::from(tag - 0x20),
                0x34..=0x37 => usize::from(tag - 0x34) << 8 | usize::from(self.byte()?),
                b'A' | b'B' => self.big_endian::<2>()? as usize,
                _ => return Err(Broken),
            };
            self.take(count)?;
            if tag != b'A' {
                return Ok(());
            }
        }
    }

    /// A type is a text, or the number of one before.
    fn skip_type(&mut self) -> Result<(), Broken> {
        if self.is_text() { self.text().map(drop) } else { self.int().map(drop) }
    }

    fn skip_fields(&mut self, class: usize) -> Result<(), Broken> {
        let fields = *self.classes.get(class).ok_or(Broken)?;
        self.skip_values(fields)
    }

    fn skip_values(&mut self, count: usize) -> Result<(), Broken> {
        // Each takes a byte at least, so a count that was only announced costs nothing.
        for _ in 0..count {
            self.skip()?;
        }
        Ok(())
    }

    fn skip_until_end(&mut self) -> Result<(), Broken> {
        while !self.ends()? {
            self.skip()?;
        }
        Ok(())
    }

    fn ends(&mut self) -> Result<bool, Broken> {
        let ends = self.peek()? == b'Z';
        if ends {
            self.byte()?;
        }
        Ok(ends)
    }

    /// Read a map, and give *entry* those of its entries whose key and value are texts, until it has enough; null has none.
    pub fn map(
        &mut self,
        mut entry: impl FnMut(Cow<'m, [u8]>, Cow<'m, [u8]>) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        match self.byte()? {
            b'N' => return Ok(()),
            b'H' => {}
            b'M' => self.skip_type()?,
            _ => return Err(Broken),
        }
        while !self.ends()? {
            let key = if self.is_text() { Some(self.text()?) } else { self.skip().map(|()| None)? };
            match key {
                Some(key) if self.is_text() => entry(key, self.text()?)?,
                _ => self.skip()?,
            }
        }
        Ok(())
    }
}

/// Append a text of any length. *text* goes out in UTF-8, whose four-byte characters Java's decoders would not take, so they become `?`.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    let units: Vec<char> = text.chars().map(|it| if u32::from(it) > 0xffff { '?' } else { it }).collect();
    /// The longest part that Java's encoder makes.
    const PART: usize = 0x8000;
    let mut parts = units.chunks(PART).peekable();
    if parts.peek().is_none() {
        out.push(0);
    }
    while let Some(part) = parts.next() {
        match (parts.peek(), part.len()) {
            (None, count @ ..0x20) => out.push(count as u8),
            (next, count) => {
                out.push(if next.is_some() { b'R' } else { b'S' });
                out.extend((count as u16).to_be_bytes());
            }
        }
        let mut bytes = [0; 4];
        for character in part {
            out.extend(character.encode_utf8(&mut bytes).as_bytes());
        }
    }
}
