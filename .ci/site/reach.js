// The side bar shows where the reader is
const side = document.querySelector('.sidebar-scroll')
const here = side?.querySelector('.current:not(.has-children)')
const below = () => here.getBoundingClientRect().top - side.getBoundingClientRect().top
if (here) side.scrollTo({top: below() - side.clientHeight/2, behavior: 'instant'})

// What scrolls sideways can be reached, and then scrolled, with the keyboard
function reach() {
  for (const box of document.querySelectorAll('pre, div.math, div.text_html, div.table-wrapper')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
    else box.removeAttribute('tabindex')
  }
}
for (const event of ['load', 'resize', 'toggle']) addEventListener(event, reach, true)
