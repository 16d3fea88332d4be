// A classic script, so that the remembered theme is set before the first paint.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // Storage may be forbidden; then the system decides.
  }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
