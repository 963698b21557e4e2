// object: TCP connections whose other end was closed, the last data not read yet
// status: captured
// note: the closed end has no descriptor any more
#include "object.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), value;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    CHECK(listen(listener, 50) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    int left[8] = {0}, begun = 0, done = 0;
    ready();
    do {
        while (begun - done < 8) {
            int client = socket(AF_INET, SOCK_STREAM, 0);
            CHECK(connect(client, (void *)&here, sizeof here) == 0);
            left[begun % 8] = accept(listener, 0, 0);
            CHECK(send(client, &begun, 4, 0) == 4);
            close(client);
            begun++;
        }
        while (begun - done > 4) {
            CHECK_EQUAL(recv(left[done % 8], &value, 4, 0), 4);
            CHECK_EQUAL(value, done);
            CHECK_EQUAL(recv(left[done % 8], &value, 4, 0), 0);
            close(left[done++ % 8]);
        }
    } while (go_on());
    PASS();
}
