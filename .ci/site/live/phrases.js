// A phrase to token ids, as the tokenizer.json of BERT's kind says it: clean, split into words, look the words up.

const MOST_LETTERS = 500
const CJK = /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu
const LETTER = /[\p{L}\p{N}\p{So}]/u // of a word; punctuation has none
const BLANK = /^[\p{Z}\p{M}\p{Cc}\p{Cf}\u115f\u1160\u3164\uffa0\u2800]*$/u

export class Tokenizer {
  constructor(json, padId, unknownIds, maxWords) {
    const {normalizer, pre_tokenizer: split, post_processor: frame, model, added_tokens: added} = json
    if (normalizer?.type !== 'BertNormalizer' || split?.type !== 'BertPreTokenizer' || frame?.type !== 'TemplateProcessing'
        || !['WordLevel', 'WordPiece'].includes(model.type)) throw new Error('This page reads tokenizers of the kind of BERT only.')
    this.normalizer = normalizer
    this.model = model
    this.special = new Map(added.map(token => [token.content, token.id]))
    const side = parts => parts.flatMap(part => part.SpecialToken ? frame.special_tokens[part.SpecialToken.id].ids : [])
    const middle = frame.single.findIndex(part => part.Sequence)
    this.before = side(frame.single.slice(0, middle))
    this.after = side(frame.single.slice(middle + 1))
    this.padId = padId
    this.unknown = new Set(unknownIds)
    this.maxWords = maxWords
  }

  // Words that the model was trained with
  get known() { return Object.keys(this.model.vocab).filter(word => !this.special.has(word) && LETTER.test(word)) }

  normalise(text) {
    const {clean_text: clean, handle_chinese_chars: chinese, strip_accents: strip, lowercase} = this.normalizer
    if (clean) text = text.replace(/[\t\n\r]/g, ' ').replace(/\p{Zs}|\p{Zl}|\p{Zp}/gu, ' ').replace(/[\p{C}\ufffd]/gu, '')
    if (chinese) text = text.replace(CJK, ' $& ')
    if (strip ?? lowercase) text = text.normalize('NFD').replace(/\p{Mn}/gu, '')
    return lowercase ? Array.from(text, letter => letter.toLowerCase()).join('') : text
  }

  lookUp(word) {
    const {type, vocab, unk_token: unk, continuing_subword_prefix: prefix, max_input_chars_per_word: most} = this.model
    const known = piece => Object.hasOwn(vocab, piece) ? vocab[piece] : undefined
    if (type === 'WordLevel') return [known(word) ?? vocab[unk]]
    const letters = [...word], ids = []
    if (letters.length > most) return [vocab[unk]]
    for (let from = 0, to; from < letters.length; from = to) {
      let id
      for (to = letters.length; to > from; to--) {
        id = known((from ? prefix : '') + letters.slice(from, to).join(''))
        if (id !== undefined) break
      }
      if (id === undefined) return [vocab[unk]]
      ids.push(id)
    }
    return ids
  }

  // The words of a text, each with its ids; special tokens stay whole
  words(text) {
    const names = [...this.special.keys()].map(name => name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    const parts = names.length ? text.split(new RegExp(`(${names.join('|')})`)) : [text]
    return parts.flatMap((part, i) => {
      if (i % 2) return [{word: part, ids: [this.special.get(part)]}]
      const words = this.normalise(part).match(/[\p{P}!-/:-@[-`{-~]|[^\s\p{P}!-/:-@[-`{-~]+/gu) ?? []
      return words.map(word => ({word, ids: this.lookUp(word)}))
    })
  }

  // N ids, and how many tokens the phrase has
  encode(phrase) {
    const words = this.words(phrase)
    const kept = words.filter(({word, ids}) => LETTER.test(word) || !ids.every(id => this.unknown.has(id))) // no unknown marks
    const ids = [...this.before, ...(kept.length ? kept : words).flatMap(({ids}) => ids), ...this.after]
    return {ids: [...ids, ...Array(this.maxWords).fill(this.padId)].slice(0, this.maxWords), tokens: ids.length}
  }

  // The pieces of a phrase between blanks, each with whether the model knows its words
  marked(phrase) {
    return phrase.trim().split(/\s+/u).filter(Boolean).map(text => {
      const words = this.words(text).filter(({word}) => LETTER.test(word))
      return {text, counts: words.length > 0, known: words.every(({ids}) => !ids.some(id => this.unknown.has(id)))}
    })
  }

  // What is wrong with a phrase, in a sentence; '' where it can be asked
  fault(phrase) {
    if (BLANK.test(phrase)) return 'Type what to look for, such as: the red star.'
    if (phrase.length > MOST_LETTERS) return `The phrase has ${phrase.length} letters; ${MOST_LETTERS} at most are read.`
    const pieces = this.marked(phrase), words = pieces.filter(({counts}) => counts)
    const asked = words.length ? words : pieces
    if (words.length ? words.every(({known}) => !known) : this.words(phrase).every(({ids}) => ids.some(id => this.unknown.has(id)))) {
      return `The model knows none of these words: ${asked.slice(0, 5).map(({text}) => text).join(', ')}.`
    }
    const {tokens} = this.encode(phrase)
    return tokens > this.maxWords ? `The phrase has ${tokens} tokens; the model reads ${this.maxWords} at most.` : ''
  }
}

// What follows each of the words that come before a landmark: the other things that must be there, each as a phrase
export function landmarks(phrase, after) {
  if (!after.length) return []
  const inOneLine = text => text.trim().split(/\s+/u).join(' ')
  const longestFirst = [...after].sort((a, b) => b.length - a.length)
  const words = longestFirst.map(word => inOneLine(word).replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')).join('|')
  const line = inOneLine(phrase), found = line.matchAll(new RegExp(`(?<![\\p{L}\\p{N}_])(?:${words})(?![\\p{L}\\p{N}_])`, 'giu'))
  return [...found].map(match => line.slice(match.index + match[0].length).trim()).filter(rest => !BLANK.test(rest))
}

// The answer in words where nothing is there; '' where something is
export function noteAbsent(exists, threshold) {
  const percent = 100*exists
  return exists >= threshold ? '' : `not there (probability that it is: ${percent < 1 ? 'below 1' : Math.round(percent)} %)`
}
