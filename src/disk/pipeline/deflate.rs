//! Walks through a deflate stream without inflating it: where it ends, and that every inflater takes it.
//!
//! libdeflate takes symbols and codes that RFC 1951 rules out and zlib, QEMU's inflater, refuses. A stream that is passed
//! on must be read by everybody, so what is unusual is refused here, and encoded anew.

/// Bits that are looked up at once. Longer codes are rare, and read bit by bit.
const LOOKUP_BITS: usize = 11;
const LOOKUP: usize = 1 << LOOKUP_BITS;
/// Longest code of a symbol (RFC 1951, section 3.2.7).
const MAX_BITS: usize = 15;

/// Symbols of literals and lengths, and of distances. Fixed blocks have codes for two more of each, which must not occur
/// (section 3.2.6).
const LITERALS: usize = 286;
const DISTANCES: usize = 30;
const END_OF_BLOCK: usize = 256;
/// The order in which the lengths of a header's own codes come (section 3.2.7).
const HEADER_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// What a looked-up entry tells, in bits 9 and above: no more to this symbol, a distance follows, the block ends, or that
/// the code is longer than what was looked up, or none.
const WHOLE: u16 = 0 << 9;
const LENGTH: u16 = 1 << 9;
const END: u16 = 2 << 9;
const LONG: u16 = 3 << 9;

/// The tables of one thread, filled anew for each block.
pub struct Walk {
    literals: Code,
    distances: Code,
}

impl Walk {
    pub fn new() -> Self {
        Self { literals: Code::new(), distances: Code::new() }
    }

    /// Bytes of the deflate stream that `input` begins with; `None` where it is cut off, damaged or unusual. That no
    /// distance reaches back behind the first byte is for the inflater to say.
    pub fn len(&mut self, input: &[u8]) -> Option<usize> {
        let mut bits = Bits { input, at: 0, buffer: 0, count: 0 };
        loop {
            bits.refill()?;
            let is_last = bits.take(1) == 1;
            match bits.take(2) {
                0 => bits.stored()?,
                1 => {
                    self.fixed()?;
                    self.block(&mut bits)?;
                }
                2 => {
                    self.header(&mut bits)?;
                    self.block(&mut bits)?;
                }
                _ => return None,
            }
            if is_last {
                return bits.bytes();
            }
        }
    }

    /// The codes of a fixed block (section 3.2.6).
    fn fixed(&mut self) -> Option<()> {
        let mut lens = [8; LITERALS + 2];
        lens[144..END_OF_BLOCK].fill(9);
        lens[END_OF_BLOCK..280].fill(7);
        self.fill(&lens, &[5; DISTANCES + 2])
    }

    /// The codes that a dynamic block begins with (section 3.2.7).
    fn header(&mut self, bits: &mut Bits) -> Option<()> {
        bits.refill()?;
        let (literals, distances, own) = (257 + bits.take(5), 1 + bits.take(5), 4 + bits.take(4));
        if literals > LITERALS || distances > DISTANCES {
            return None;
        }
        let mut lens = [0; HEADER_ORDER.len()];
        for &symbol in &HEADER_ORDER[..own] {
            bits.refill()?;
            lens[symbol] = bits.take(3).to_le_bytes()[0];
        }
        let code = Canonical::new(&lens)?;
        if code.unused > 0 {
            return None;
        }
        let mut lens = [0; LITERALS + DISTANCES];
        let lens = &mut lens[..literals + distances];
        let mut filled = 0;
        while filled < lens.len() {
            bits.refill()?;
            let (symbol, used) = code.symbol(bits.buffer)?;
            bits.skip(used);
            let (len, count) = match symbol {
                0..16 => (symbol.to_le_bytes()[0], 1),
                16 => (lens[filled.checked_sub(1)?], 3 + bits.take(2)),
                17 => (0, 3 + bits.take(3)),
                _ => (0, 11 + bits.take(7)),
            };
            lens.get_mut(filled..filled + count)?.fill(len);
            filled += count;
        }
        let (literals, distances) = lens.split_at(literals);
        if literals[END_OF_BLOCK] == 0 { None } else { self.fill(literals, distances) }
    }

    fn fill(&mut self, literals: &[u8], distances: &[u8]) -> Option<()> {
        self.literals.fill(literals, literal)?;
        self.literals.join();
        self.distances.fill(distances, distance)?;
        // One distance alone has a code of one bit, whose other value is not used (section 3.2.7); without lengths there is
        // none. All other codes are complete.
        let unused = (self.literals.canonical.unused, self.distances.canonical.unused);
        let few = self.distances.canonical.sorted.len() < 2;
        (unused == (0, 0) || (unused.0 == 0 && few && unused.1 >= 1 << (MAX_BITS - 1))).then_some(())
    }

    /// The symbols of a block, its end included.
    fn block(&self, bits: &mut Bits) -> Option<()> {
        loop {
            // Enough for a code of 15 bits with 5 more and one with 13 more.
            bits.refill()?;
            match self.literals.next(bits, literal)? {
                LENGTH => self.distances.next(bits, distance)?,
                END => return Some(()),
                _ => continue,
            };
        }
    }
}

/// What a symbol of literals and lengths means, and the bits behind its code.
fn literal(symbol: usize) -> Option<(u16, usize)> {
    match symbol {
        0..END_OF_BLOCK => Some((WHOLE, 0)),
        END_OF_BLOCK => Some((END, 0)),
        257..265 | 285 => Some((LENGTH, 0)),
        265..285 => Some((LENGTH, (symbol - 261) / 4)),
        _ => None,
    }
}

/// The same for a symbol of distances.
fn distance(symbol: usize) -> Option<(u16, usize)> {
    (symbol < DISTANCES).then(|| (WHOLE, (symbol / 2).saturating_sub(1)))
}

/// A code as RFC 1951, section 3.2.2, makes it of the lengths.
#[derive(Default)]
struct Canonical {
    /// Codes of each length.
    counts: [usize; MAX_BITS + 1],
    /// The symbols in the order of their codes.
    sorted: Vec<usize>,
    /// Sequences of 15 bits that begin with no code.
    unused: usize,
}

impl Canonical {
    /// `None` where there are more codes than bits for them.
    fn new(lens: &[u8]) -> Option<Self> {
        let mut code = Self::default();
        code.fill(lens)?;
        Some(code)
    }

    fn fill(&mut self, lens: &[u8]) -> Option<()> {
        self.counts = [0; MAX_BITS + 1];
        for &len in lens.iter().filter(|len| **len > 0) {
            self.counts[usize::from(len)] += 1;
        }
        let mut starts = [0; MAX_BITS + 1];
        let (mut used, mut sum) = (0, 0);
        for (len, (count, start)) in self.counts.iter().zip(&mut starts).enumerate() {
            *start = sum;
            sum += count;
            used += count << (MAX_BITS - len);
        }
        self.unused = usize::checked_sub(1 << MAX_BITS, used)?;
        self.sorted.clear();
        self.sorted.resize(sum, 0);
        for (symbol, &len) in lens.iter().enumerate().filter(|(_, len)| **len > 0) {
            let start = &mut starts[usize::from(len)];
            self.sorted[*start] = symbol;
            *start += 1;
        }
        Some(())
    }

    /// The symbol whose code `bits` begin with, and its length; `None` where it is no code.
    fn symbol(&self, bits: u64) -> Option<(usize, usize)> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for (len, &count) in self.counts.iter().enumerate().skip(1) {
            code = code << 1 | narrow(bits >> (len - 1) & 1);
            first <<= 1;
            if code < first + count {
                return Some((self.sorted[index + code - first], len));
            }
            first += count;
            index += count;
        }
        None
    }
}

/// A code with a table for its short ones.
struct Code {
    canonical: Canonical,
    /// By the next bits: the bits to skip in bits 0 to 4, those of them that are codes in bits 5 to 8, and what was skipped.
    lookup: Box<[u16; LOOKUP]>,
}

impl Code {
    fn new() -> Self {
        Self { canonical: Canonical::default(), lookup: Box::new([0; LOOKUP]) }
    }

    /// Takes the code that `lens` make; `meaning` tells what a symbol is and how many bits follow its code.
    fn fill(&mut self, lens: &[u8], meaning: impl Fn(usize) -> Option<(u16, usize)>) -> Option<()> {
        self.canonical.fill(lens)?;
        self.lookup.fill(LONG);
        let mut symbols = self.canonical.sorted.iter();
        let mut code = 0_u16;
        for (bits, &count) in self.canonical.counts.iter().enumerate().take(LOOKUP_BITS + 1).skip(1) {
            code <<= 1;
            for &symbol in symbols.by_ref().take(count) {
                // Codes begin with their highest bit, all else with its lowest (section 3.1.1).
                let first = usize::from(code.reverse_bits() >> (16 - bits));
                if let Some((what, extra)) = meaning(symbol) {
                    let entry = entry(what, bits, bits + extra);
                    self.lookup[first..].iter_mut().step_by(1 << bits).for_each(|slot| *slot = entry);
                }
                code += 1;
            }
        }
        Some(())
    }

    /// Joins literals with what comes behind them, as far as the bits looked up tell it: most symbols are literals.
    fn join(&mut self) {
        let single = self.lookup.clone();
        for index in 0..LOOKUP {
            let first = single[index];
            if what(first) != WHOLE {
                continue;
            }
            let behind = index >> skip(first);
            let fits = |next: &u16| what(*next) != LONG && skip(first) + code_bits(*next) <= LOOKUP_BITS;
            // Those before this one are joined already.
            if let Some(next) = [self.lookup[behind], single[behind]].into_iter().find(fits) {
                self.lookup[index] = entry(what(next), skip(first) + code_bits(next), skip(first) + skip(next));
            }
        }
    }

    /// Skips the next symbols and the bits behind them, and returns what the last of them is.
    fn next(&self, bits: &mut Bits, meaning: impl Fn(usize) -> Option<(u16, usize)>) -> Option<u16> {
        let entry = self.lookup[narrow(bits.buffer) % LOOKUP];
        if what(entry) != LONG {
            bits.skip(skip(entry));
            return Some(what(entry));
        }
        let (symbol, used) = self.canonical.symbol(bits.buffer)?;
        let (what, extra) = meaning(symbol)?;
        bits.skip(used + extra);
        Some(what)
    }
}

fn entry(what: u16, code_bits: usize, skip: usize) -> u16 {
    what | u16::try_from(code_bits << 5 | skip).expect("at most 11 and 24 bits")
}

fn skip(entry: u16) -> usize {
    usize::from(entry & 31)
}

fn code_bits(entry: u16) -> usize {
    usize::from(entry >> 5 & 15)
}

fn what(entry: u16) -> u16 {
    entry & LONG
}

/// The next bits of a stream, the lowest first.
struct Bits<'a> {
    input: &'a [u8],
    /// The next byte to take.
    at: usize,
    buffer: u64,
    /// Bits of the buffer that count; those above are none or the stream's next.
    count: usize,
}

impl Bits<'_> {
    /// Makes at least 56 bits known, zeros behind the end; `None` far behind it.
    fn refill(&mut self) -> Option<()> {
        let word = match self.input.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => *bytes,
            None => self.last()?,
        };
        self.buffer |= u64::from_le_bytes(word) << self.count;
        let bytes = (63 - self.count) / 8;
        self.at += bytes;
        self.count += bytes * 8;
        Some(())
    }

    #[cold]
    fn last(&self) -> Option<[u8; 8]> {
        let mut word = [0; 8];
        if self.at > self.input.len() + word.len() {
            return None;
        }
        let rest = self.input.get(self.at..).unwrap_or_default();
        word[..rest.len()].copy_from_slice(rest);
        Some(word)
    }

    /// Up to 7 bits, where they are known.
    fn take(&mut self, bits: usize) -> usize {
        let value = narrow(self.buffer & ((1 << bits) - 1));
        self.skip(bits);
        value
    }

    fn skip(&mut self, bits: usize) {
        self.buffer >>= bits;
        self.count -= bits;
    }

    /// Bytes from which a bit was taken; `None` behind the end.
    fn bytes(&self) -> Option<usize> {
        let bytes = self.at - self.count / 8;
        (bytes <= self.input.len()).then_some(bytes)
    }

    /// Skips a stored block (section 3.2.4).
    fn stored(&mut self) -> Option<()> {
        let start = self.bytes()?;
        let [a, b, c, d] = *self.input.get(start..)?.first_chunk()?;
        let (len, complement) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        *self = Self { input: self.input, at: start + 4 + usize::from(len), buffer: 0, count: 0 };
        (len == !complement && self.at <= self.input.len()).then_some(())
    }
}

fn narrow(bits: u64) -> usize {
    usize::try_from(bits & 0xFFFF).expect("16 bits")
}

#[cfg(test)]
pub mod tests;
