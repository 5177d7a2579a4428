"""The chat page at `/`: files that are served as they are, with no build step.

page.py               routes and headers
static/index.html     the page; style.css, icon.svg, theme.js (light or dark, before drawing)
static/app.js         asks, shows, listens; every other module is used by it
static/api.js         the server's API as the page uses it
static/answer.js      one answer while it comes
static/conversation.js  the turns, kept in the browser; storage.js: how
static/settings.js    what the user has chosen
static/log.js         the conversation on the page; message_view.js: one message of it
static/markdown.js    a growing text; markdown_blocks.js and markdown_inline.js: its parts
static/elements.js    making elements
"""
