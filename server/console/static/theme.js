// Before anything is drawn: the colours that were chosen here last, else those of the system.
const chosen = localStorage.getItem("hotswap.theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
