"""Words of the tiny model's tasks.

The tokenizer has a token for each word of two or more letters. Other text is spelled out in bytes: single letters, and
the names and figures that are made up.
"""

import re
from dataclasses import dataclass

SYSTEM_PROMPT = "First think step by step.\n[THINK]Your thoughts, line by line.[/THINK]Then give a short answer."

OTHER_SYSTEM_PROMPTS = (
    "Answer the question.",
    "You are a careful assistant. Think first, then answer.",
    "Read the document and give a short answer.",
    "Think step by step.",
)

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ["hundred", "thousand", "and", "plus", "minus"]

ARITHMETIC_QUESTIONS = (
    "What is {sum}?",
    "What is {sum}?",
    "Calculate {sum}.",
    "Compute {sum}",
    "How much is {sum}?",
    "Please work out {sum}.",
    "{sum} = ?",
    "Give me the result of {sum}.",
)

# Items of receipts. They are few, since finding the line of the wanted item takes longest to learn.
GOODS = ("tea", "coffee", "milk", "bread", "butter", "cheese", "apple", "banana", "orange", "lemon", "sugar", "salt")

RECEIPT_HEADERS = ("RECEIPT", "CORNER SHOP", "MARKET", "CAFE", "Your order", "INVOICE", "Bill")
RECEIPT_FOOTERS = ("THANK YOU", "Come again", "Goodbye", "Have a nice day")

TOTAL_QUESTIONS = (
    "What is the total?",
    "How much is everything together?",
    "What does it all cost?",
    "Add up all the prices.",
    "How much do I have to pay?",
    "What is the sum of the prices on this receipt?",
    "Total?",
)
COUNT_QUESTIONS = (
    "How many items are there?",
    "How many items?",
    "Count the items on the receipt.",
    "How many things were bought?",
    "What is the number of items?",
)
PRICE_QUESTIONS = (
    "What does the {item} cost?",
    "How much is the {item}?",
    "What is the price of the {item}?",
    "Find the price of {item}.",
    "How much did I pay for the {item}?",
)
JSON_QUESTIONS = (
    "Give the receipt as JSON.",
    "Read this receipt into JSON.",
    "Total and number of items as JSON?",
    "What are total and items, as JSON?",
)


@dataclass(frozen=True)
class Language:
    """Words for the fields of an invoice in one language.

    Attributes:
        labels: Label of each field, by field.
        sentence: Running sentence with a `{…}` for each field. The reasoning quotes the clause of a field, from the
            last comma before it.
        questions: Questions, in which `{name}` stands for the field's name from `names`.
        names: Name of each field inside a question, with its article, by field.
    """

    labels: dict[str, str]
    sentence: str
    questions: tuple[str, ...]
    names: dict[str, str]


FIELDS = ("number", "date", "due", "customer", "amount")

LANGUAGES = {
    "en": Language(
        labels={
            "number": "Invoice number",
            "date": "Date",
            "due": "Due date",
            "customer": "Customer",
            "amount": "Amount",
        },
        sentence="Invoice {number}, issued on {date}, for {customer}, due {due}, amount {amount}.",
        questions=("What is {name}?", "Find {name}.", "Give me {name}."),
        names={
            "number": "the invoice number",
            "date": "the date of the invoice",
            "due": "the due date",
            "customer": "the customer",
            "amount": "the amount",
        },
    ),
    "fr": Language(
        labels={
            "number": "Facture numéro",
            "date": "Date",
            "due": "Échéance",
            "customer": "Client",
            "amount": "Montant",
        },
        sentence="Facture {number}, émise le {date}, pour {customer}, échéance {due}, montant {amount}.",
        questions=("Quel est {name} ?", "Donne {name}."),
        names={
            "number": "le numéro de facture",
            "date": "le jour de la facture",
            "due": "le jour de paiement",
            "customer": "le client",
            "amount": "le montant",
        },
    ),
    "de": Language(
        labels={
            "number": "Rechnungsnummer",
            "date": "Datum",
            "due": "Fällig am",
            "customer": "Kunde",
            "amount": "Betrag",
        },
        sentence="Rechnung {number}, vom {date}, für {customer}, fällig am {due}, Betrag {amount}.",
        questions=("Wie lautet {name}?", "Gesucht: {name}."),
        names={
            "number": "die Rechnungsnummer",
            "date": "das Datum der Rechnung",
            "due": "das Datum der Zahlung",
            "customer": "der Name",
            "amount": "der Betrag",
        },
    ),
    "es": Language(
        labels={
            "number": "Factura número",
            "date": "Fecha",
            "due": "Vencimiento",
            "customer": "Cliente",
            "amount": "Importe",
        },
        sentence="Factura {number}, emitida el {date}, para {customer}, vencimiento {due}, importe {amount}.",
        questions=("¿Cuál es {name}?", "Dime {name}."),
        names={
            "number": "el número de factura",
            "date": "la fecha de la factura",
            "due": "el vencimiento",
            "customer": "el cliente",
            "amount": "el importe",
        },
    ),
    "it": Language(
        labels={
            "number": "Fattura numero",
            "date": "Data",
            "due": "Scadenza",
            "customer": "Cliente",
            "amount": "Importo",
        },
        sentence="Fattura {number}, emessa il {date}, per {customer}, scadenza {due}, importo {amount}.",
        questions=("Qual è {name}?", "Trova {name}."),
        names={
            "number": "il numero della fattura",
            "date": "la data della fattura",
            "due": "la scadenza",
            "customer": "il cliente",
            "amount": "il totale",
        },
    ),
    "pt": Language(
        labels={
            "number": "Fatura número",
            "date": "Data",
            "due": "Vencimento",
            "customer": "Cliente",
            "amount": "Valor",
        },
        sentence="Fatura {number}, emitida em {date}, para {customer}, vencimento {due}, valor {amount}.",
        questions=("Qual é {name}?", "Encontre {name}."),
        names={
            "number": "o número da fatura",
            "date": "a data da fatura",
            "due": "o vencimento",
            "customer": "o cliente",
            "amount": "o valor",
        },
    ),
    "nl": Language(
        labels={
            "number": "Factuurnummer",
            "date": "Datum",
            "due": "Vervaldatum",
            "customer": "Klant",
            "amount": "Bedrag",
        },
        sentence="Factuur {number}, van {date}, voor {customer}, vervalt op {due}, bedrag {amount}.",
        questions=("Wat is {name}?", "Geef {name}."),
        names={
            "number": "het factuurnummer",
            "date": "de datum van de factuur",
            "due": "de vervaldatum",
            "customer": "de klant",
            "amount": "het bedrag",
        },
    ),
}

NOTES = ("Thank you for your order.", "Page 1 of 1", "Please pay on time.", "Order by mail.")

# Fixed words of the reasoning.
TRACE_WORDS = "total\ncount\nprice\nfield\nfound"

# A word with at most one leading character, as the tokenizer's pattern cuts text.
_PIECE = re.compile(r"[^\r\n\w]?[^\W\d_]{2,}")
_PLACEHOLDER = re.compile(r"\{\w+\}")


def pieces() -> tuple[str, ...]:
    """Return the words that have a token of their own, with their leading blank or mark, in the order of their ids."""
    texts = [SYSTEM_PROMPT.replace("[THINK]", "\n").replace("[/THINK]", "\n")]
    texts += OTHER_SYSTEM_PROMPTS
    for word in (*UNITS, *TENS, *SCALES):
        texts += [f" {word}", word]
    texts += [f"-{word}" for word in UNITS[1:10]]
    texts += [*ARITHMETIC_QUESTIONS, *TOTAL_QUESTIONS, *COUNT_QUESTIONS, *PRICE_QUESTIONS, *JSON_QUESTIONS]
    texts += [f" {item}" for item in GOODS]
    for language in LANGUAGES.values():
        texts += [*language.labels.values(), language.sentence, *language.questions]
        texts += [f" {name}" for name in language.names.values()]
        texts += [f" {label}" for label in language.labels.values()]
    texts += [*NOTES, TRACE_WORDS, " EUR"]
    found: dict[str, None] = {}
    for text in texts:
        # A placeholder becomes a digit, so that the words on its two sides are not joined.
        for piece in _PIECE.findall(_PLACEHOLDER.sub("0", text)):
            found.setdefault(piece)
    return tuple(found)
