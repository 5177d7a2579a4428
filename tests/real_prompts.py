"""Fifty short prompts of the kinds people write; many invite repetition."""

_LINES = """\
The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is
Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,
1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4,
def add(a, b):\\n    return a + b\\n\\ndef subtract(a, b):\\n    return
Roses are red, violets are blue, sugar is sweet, and
Once upon a time there was a little girl who lived in a village near the forest.
Q: What is the largest planet?\\nA: Jupiter\\nQ: What is the smallest planet?\\nA:
import numpy as np\\nimport pandas as pd\\nimport
To be, or not to be, that is the question: Whether 'tis nobler
<ul>\\n  <li>One</li>\\n  <li>Two</li>\\n  <li>
name,age,city\\nAnna,31,Oslo\\nBen,27,Rome\\nCarla,
SELECT name, age FROM people WHERE age > 30 ORDER BY
Dear Sir or Madam, I am writing to you because
The quick brown fox jumps over the lazy dog. The quick brown
for i in range(10):\\n    print(i)\\nfor j in range(
Water boils at 100 degrees Celsius and freezes at
Translate to French: cat -> chat, dog -> chien, house ->
The three primary colours are red, blue and
She sells sea shells by the sea shore. The shells she sells are
{"name": "Anna", "age": 31}, {"name": "Ben", "age":
In 1969, the first human being walked on the
How do I make tea? First, boil the water. Then,
A palindrome is a word that reads the same
The mitochondria is the powerhouse of the
Row, row, row your boat, gently down the stream. Row, row,
if x > 0:\\n    sign = 1\\nelif x < 0:\\n    sign =
The meeting is on Tuesday at ten. Please remind me: the meeting is on
## Installation\\n\\nRun the following command:\\n\\n```\\npip install
Two plus two is four. Three plus three is six. Four plus four is
Ingredients: flour, sugar, eggs, butter. Method: mix the flour,
The speed of light is about 300,000 kilometres per
Happy birthday to you, happy birthday to you, happy birthday dear
class Dog:\\n    def __init__(self, name):\\n        self.name = name\\n\\nclass Cat:\\n    def
January, February, March, April, May, June, July,
The patient complained of headache and
A B C D E F G H I J K L M N
Copy this sentence: the cat sat on the mat. Copy: the cat sat
What is the difference between a virus and a
The train leaves at 8:15 and arrives at 9:45. The next train leaves at
assert add(1, 2) == 3\\nassert add(2, 3) == 5\\nassert add(
It was the best of times, it was the worst of times, it was the
My favourite animals are cats, dogs and
Photosynthesis is the process by which plants
red green blue red green blue red green
The author argues that reading is important because
int main(void) {\\n    puts("Hello, world!");\\n    return
In conclusion, we have shown that
<html>\\n<head>\\n<title>Test</title>\\n</head>\\n<body>\\n
Old MacDonald had a farm, E-I-E-I-O. And on that farm he had a
User: Hello!\\nAssistant: Hello! How can I help you today?\\nUser:"""

REAL_PROMPTS = tuple(line.replace("\\n", "\n") for line in _LINES.splitlines())
