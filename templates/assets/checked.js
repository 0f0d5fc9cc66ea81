// Asks, ever more seldom, how the change that the page is about stands, and
// loads the page again once that has moved. Without a script there is the
// button "Check again".
(() => {
  "use strict";
  const line = document.getElementById("asking");
  if (!line) return;
  const { href, state, asking, offline, over } = line.dataset;
  const until = Date.now() + 15 * 60 * 1000;
  let wait = 2000, last = Date.now(), timer, busy = false, done = false;
  const say = (text) => { if (line.textContent !== text) line.textContent = text; };
  const end = () => { done = true; say(over); };
  const next = () => {
    clearTimeout(timer);
    if (done || document.hidden) return;
    if (Date.now() > until) return end();
    timer = setTimeout(ask, wait);
    wait = Math.min(wait * 2, 60 * 1000);
  };
  const ask = async () => {
    if (busy || done) return;
    busy = true;
    last = Date.now();
    try {
      const answer = await fetch(href, { cache: "no-store", redirect: "error", signal: AbortSignal.timeout(10000) });
      if (answer.ok && (await answer.json()).state !== state) {
        done = true;
        location.reload();
      } else if (answer.status >= 400 && answer.status < 500) {
        end();
      } else {
        say(answer.ok ? asking : offline);
      }
    } catch {
      say(offline);
    }
    busy = false;
    next();
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Date.now() - last >= 2000) ask(); else next();
  });
  say(asking);
  next();
})();
