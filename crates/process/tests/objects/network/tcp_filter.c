// object: classic BPF filters on TCP sockets: a connection's, a listener's, and one inherited
// status: captured
// note: filters of other kinds cannot be had (bpf is hidden)
#include "object.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <sys/socket.h>

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    // Segments with the urgent flag are dropped, of which there are none; the code is what is to be kept.
    struct sock_filter code[] = {
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 13}, {BPF_JMP | BPF_JSET | BPF_K, 1, 0, 0x20},
        {BPF_RET | BPF_K, 0, 0, 0xffffffff},  {BPF_RET | BPF_K, 0, 0, 0},
    }, now[4];
    struct sock_fprog program = {4, code};
    CHECK(setsockopt(listener, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(listen(listener, 5) == 0 && getsockname(listener, (void *)&here, &length) == 0);
    CHECK(connect(client, (void *)&here, sizeof here) == 0);
    int server = accept(listener, 0, 0), round = 0, value;
    CHECK(setsockopt(client, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(setsockopt(client, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on) == 0);
    ready();
    do {
        round++;
        CHECK(send(client, &round, 4, 0) == 4 && recv(server, &value, 4, 0) == 4 && value == round);
    } while (go_on());
    int all[] = {listener, server, client};
    for (int i = 0; i < 3; i++) {
        length = 4;
        CHECK(getsockopt(all[i], SOL_SOCKET, SO_GET_FILTER, now, &length) == 0);
        CHECK_EQUAL(length, 4);
        CHECK(memcmp(now, code, sizeof code) == 0);
    }
    CHECK(setsockopt(client, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof on) == -1 && errno == EPERM);
    PASS();
}
