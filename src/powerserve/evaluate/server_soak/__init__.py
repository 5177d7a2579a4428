"""A long run of clients, good and bad ones, against a real server process.

plan.py          what is run
process.py       the server's process, and what it takes of the machine
http_client.py   HTTP/1.1 as clients speak it, and as none should
questions.py     what is asked, and what is known about the answers
families.py      the same question in every API family, and how an answer is read
truths.py        the answers of a server at rest
asking.py        clients that ask, and check what they get
misbehaving.py   clients that leave, dawdle, or send nonsense
malformed.py     bodies that are not as they should be
hub.py           a hub whose downloads never end
run.py           all of them together
report.py        what came of it
"""
