// Sphinx ranks a page by its best word alone. Here each word of the query counts that is in the title, the name of the
// page or the list SOUGHT of pages.py, and what explains comes before what lists
var Scorer = {
  score: ([page, title, anchor, about, score]) => {
    const query = new URLSearchParams(location.search).get('q').toLowerCase()
    const words = query.split(/\W+/).filter(word => word.length > 2)
    const names = `${title} ${page} ${SOUGHT[page] || ''}`.toLowerCase()
    const said = words.filter(word => names.includes(word)).length
    const extra = (words.includes(page) ? 6 : 0) + (said && page.startsWith('tutorial') ? 2 : 0)
    return score + 6*said + extra - (page.startsWith('api/') ? 6 : 0)
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0, // Sphinx's own from here
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
}
