// A scripted voter in a real browser, who prefers the reply with fewer words: node voter.mjs PORT VOTES [PAIR]
// PAIR counts the choices of the page from the last one: 0 (two samples of the last run), 1, ...
import { chromium } from "playwright";

const [port, count, pair = 0] = process.argv.slice(2).map(Number);
const browser = await chromium.launch();
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${port}/`);
await page.waitForSelector(".card");
await page.fill("#annotator", "prefers shorter");
await page.keyboard.press("Tab");
await page.click("#tab-vote");
await page.selectOption("#pair", { index: (await page.locator("#pair option").count()) - 1 - pair });

const words = async (side) => (await page.locator(`#reply-${side}`).innerText()).split(/\s+/).length;
const dealt = () => document.querySelector("#reply-0") || /judged all/.test(document.getElementById("ballot").textContent);
let votes = 0;
while (votes < count) {
  await page.waitForFunction(dealt, null, { timeout: 120000 });
  if (!(await page.locator("#reply-0").count())) break; // all prompts are judged
  const [left, right] = [await words(0), await words(1)];
  const shown = await page.locator("#reply-0").elementHandle();
  await page.locator("body").press(left < right ? "1" : left > right ? "2" : "3");
  await page.waitForFunction((element) => !element.isConnected, shown, { timeout: 120000 });
  votes += 1;
}
await page.click("#tab-results");
await page.waitForTimeout(500);
console.log(`${votes} votes`, await page.locator("#tables").innerText());
await browser.close();
