// Sphinx ranks a page by its best word alone. Here each word of the query counts that is in the title or the page's name,
// and what explains comes before what lists
var Scorer = {
  score: ([page, title, anchor, about, score]) => {
    const words = new URLSearchParams(location.search).get('q').toLowerCase().split(/\W+/).filter(word => word.length > 2)
    const said = words.filter(word => `${title} ${page}`.toLowerCase().includes(word)).length
    return score + 6*said + (words.includes(page) ? 6 : 0) + (said && page.startsWith('tutorial') ? 2 : 0) - (page.startsWith('api/') ? 6 : 0)
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0, // Sphinx's own from here
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
}
