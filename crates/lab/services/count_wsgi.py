# Counts by name, in a file that is locked: `POST /count/NAME` answers with the number.
import fcntl


def app(environ, start_response):
    name = environ['PATH_INFO'].replace('/', '-')
    with open('/tmp/' + name, 'a+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        count = int(file.read() or 0) + 1
        file.truncate(0)
        file.write(str(count))
    body = f'{count}\n'.encode()
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
