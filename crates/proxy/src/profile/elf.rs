//! The symbols of an ELF file (System V ABI, chapter 4), of 64 bits and the byte order of this machine: it is loaded into this very process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
const STT_FUNC: u8 = 2;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
/// No table that we care for is larger; a file that says otherwise is damaged.
const MOST_BYTES: u64 = 256 << 20;

/// Functions by where they begin, in the file's own addresses.
#[derive(Debug, Default)]
pub struct Functions {
    /// Address, length, and where in `names` the name begins; sorted.
    table: Vec<(u64, u64, u32)>,
    /// Each ends with a zero.
    names: Vec<u8>,
}

impl Functions {
    /// Read all symbols of *path*, or those for the dynamic linker if it was stripped.
    ///
    /// # Errors
    /// As the system reports; `InvalidData` for a file that is no such ELF.
    pub fn read(path: &Path) -> io::Result<Functions> {
        let file = File::open(path)?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        if header[..5] != *b"\x7fELF\x02" {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (offset, size, count) =
            (u64_at(&header, 40)?, usize::from(u16_at(&header, 58)?), usize::from(u16_at(&header, 60)?));
        if size != SECTION_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let sections = read(&file, offset, (size * count) as u64)?;
        let sections: Vec<&[u8]> = sections.chunks_exact(SECTION_BYTES).collect();
        let of_kind = |kind: u32| sections.iter().find(|section| u32_at(section, 4).is_ok_and(|found| found == kind));
        let Some(symbols) = of_kind(SHT_SYMTAB).or_else(|| of_kind(SHT_DYNSYM)) else {
            return Ok(Functions::default());
        };
        let strings = sections.get(u32_at(symbols, 40)? as usize).ok_or(io::ErrorKind::InvalidData)?;
        let content = |section: &[u8]| read(&file, u64_at(section, 24)?, u64_at(section, 32)?);
        let (symbols, names) = (content(symbols)?, content(strings)?);
        let mut table = Vec::new();
        for symbol in symbols.chunks_exact(SYMBOL_BYTES) {
            let (name, kind) = (u32_at(symbol, 0)?, symbol[4] & 15);
            let (address, length) = (u64_at(symbol, 8)?, u64_at(symbol, 16)?);
            // Where there is no section the function is somebody else's.
            if kind == STT_FUNC && u16_at(symbol, 6)? != 0 {
                table.push((address, length, name));
            }
        }
        table.sort_unstable();
        Ok(Functions { table, names })
    }

    /// The name of the function that has code at *address*, and where it begins.
    pub fn find(&self, address: u64) -> Option<(u64, &str)> {
        let after = self.table.partition_point(|(begin, ..)| *begin <= address);
        let (begin, length, name) = *self.table.get(after.checked_sub(1)?)?;
        if address - begin >= length.max(1) {
            return None;
        }
        let name = self.names.get(name as usize..)?.split(|byte| *byte == 0).next()?;
        Some((begin, std::str::from_utf8(name).ok()?))
    }
}

fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    if length > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; length as usize];
    file.read_exact_at(&mut content, offset)?;
    Ok(content)
}

fn bytes_at<const N: usize>(text: &[u8], offset: usize) -> io::Result<[u8; N]> {
    let found = text.get(offset..offset + N).and_then(|found| found.try_into().ok());
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn u16_at(text: &[u8], offset: usize) -> io::Result<u16> {
    bytes_at(text, offset).map(u16::from_ne_bytes)
}

fn u32_at(text: &[u8], offset: usize) -> io::Result<u32> {
    bytes_at(text, offset).map(u32::from_ne_bytes)
}

fn u64_at(text: &[u8], offset: usize) -> io::Result<u64> {
    bytes_at(text, offset).map(u64::from_ne_bytes)
}
