package synproxy
